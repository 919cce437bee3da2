// An ordinary program: it says nothing of where to find a server, and knows no key. tests/test_connect.py moves it over.
import { readFileSync } from "node:fs";
import { fal } from "@fal-ai/client";
import * as deprecated from "@fal-ai/serverless-client";
import WebSocket from "ws";

const [picture, what] = process.argv.slice(2);
const image_url = `data:image/jpeg;base64,${readFileSync(picture, "base64")}`;
const input = { image_url, seed: 7, steps: 2 };
const file = () => new Blob([readFileSync(picture)], { type: "image/jpeg" });
const sizeOf = async (url) => (await (await fetch(url)).arrayBuffer()).byteLength;

const scenarios = {
  async current() {
    const statuses = [];
    const onQueueUpdate = (update) => statuses.push(update.status);
    const subscribed = await fal.subscribe("fal-ai/fast-svd-lcm", { input, onQueueUpdate });
    const ran = await fal.run("fal-ai/svd", { input });
    const size = await sizeOf(ran.data.image.url);
    return { subscribed: subscribed.data, last: statuses.at(-1), ran: ran.data, requestId: ran.requestId, size };
  },
  async deprecated() {
    const subscribed = await deprecated.subscribe("fal-ai/fast-svd-lcm", { input });
    return { subscribed, ran: await deprecated.run("fal-ai/svd", { input }) };
  },
  async uploads() {
    const urls = [await fal.storage.upload(file()), await deprecated.storage.upload(file())];
    const { data } = await fal.subscribe("fal-ai/svd", { input: { ...input, image_url: file() } });
    return { urls, sizes: await Promise.all(urls.map(sizeOf)), data };
  },
  async realtime() {
    globalThis.WebSocket = WebSocket; // Node 20 has none of its own
    return new Promise((resolve, reject) => {
      const connection = fal.realtime.connect("fal-ai/fast-svd-lcm", {
        connectionKey: "connect",
        throttleInterval: 0,
        onResult: (result) => (connection.close(), resolve(result)),
        onError: reject,
      });
      connection.send(input);
    });
  },
};

console.log(JSON.stringify(await scenarios[what]()));

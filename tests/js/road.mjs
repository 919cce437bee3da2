// Drives the official client through the fal proxy route of a running server, and prints what it saw as JSON.
import { readFileSync } from "node:fs";
import { fal } from "@fal-ai/client";

const [url, key, picture, what] = process.argv.slice(2);
const image_url = `data:image/jpeg;base64,${readFileSync(picture, "base64")}`;
fal.config({ credentials: key, proxyUrl: { url: `${url}/api/fal/proxy`, when: "always" } });

const inputs = {
  "fal-ai/stable-video": { image_url, seed: 7, fps: 12 },
  "fal-ai/svd": { image_url, seed: 7, steps: 2 },
  "fal-ai/fast-svd-lcm": { image_url, seed: 7, steps: 2 },
  "fal-ai/fast-svd-lcm/text-to-video": { prompt: "a red boat", seed: 7, steps: 2, video_size: "square" },
};

async function failure(call) {
  try {
    await call;
    return null;
  } catch (error) {
    return { name: error.name, status: error.status, requestId: error.requestId, body: error.body };
  }
}

const scenarios = {
  async subscribe() {
    const seen = {};
    for (const [id, input] of Object.entries(inputs)) {
      const statuses = [];
      const onQueueUpdate = (update) => statuses.push(update.status);
      const { data, requestId } = await fal.subscribe(id, { input, logs: true, pollInterval: 100, onQueueUpdate });
      seen[id] = { data, requestId, statuses: [...new Set(statuses)] };
    }
    return seen;
  },
  async run() {
    const { data, requestId } = await fal.run("fal-ai/svd", { input: inputs["fal-ai/svd"] });
    const get = await fal.run("fal-ai/fast-svd-lcm", { method: "get", input: { image_url: `${url}/files/samples/landscape.jpg`, steps: 1 } });
    return { data, requestId, get: get.data };
  },
  async errors() {
    const invalid = await failure(fal.run("fal-ai/stable-video", { input: { motion_bucket_id: 0 } }));
    const { request_id: requestId } = await fal.queue.submit("fal-ai/svd", { input: { image_url, steps: 100 } });
    const early = await failure(fal.queue.result("fal-ai/svd", { requestId }));
    await fal.queue.cancel("fal-ai/svd", { requestId });
    await fal.queue.subscribeToStatus("fal-ai/svd", { requestId, pollInterval: 100 });
    const cancelled = await failure(fal.queue.result("fal-ai/svd", { requestId }));
    return { invalid, early, cancelled };
  },
  async stream() {
    const { request_id: requestId } = await fal.queue.submit("fal-ai/svd", { input: inputs["fal-ai/svd"] });
    const stream = await fal.queue.streamStatus("fal-ai/svd", { requestId, logs: true });
    const lines = [];
    for await (const status of stream) lines.push(...(status.logs ?? []).map((line) => line.message));
    return { last: await stream.done(), lines };
  },
};

console.log(JSON.stringify(await scenarios[what]()));

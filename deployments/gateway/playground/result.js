// What becomes of a request, as a person sees it: waiting, step by step, the clip, or what went wrong.
import { call } from "./api.js";
import { $, copyButton, h, here, icon, say } from "./dom.js";
import { askForKey } from "./key.js";
import { model, nearestSize } from "./model.js";
import { bytes, clock, many, money, seconds } from "./words.js";

let ticking = null;
let pace = null;
let drawn = { phase: null, id: null, player: null };

/** Ask how fast this endpoint is; unknown is no failure. */
export async function learnPace() {
  pace = await call(`/playground/pace?endpoint_id=${encodeURIComponent(model.id)}`).catch(() => null);
  return pace;
}

/** What is there before anything was made. */
export function showEmpty() {
  const wait = pace?.seconds ? `A clip takes about ${seconds(pace.seconds)} on this server.` : "";
  const wanted = model.schema.required?.includes("prompt") ? "Say what it should show" : "Choose a picture";
  setStatus("");
  $("stage").replaceChildren(
    h("div", { class: "blank" }, icon("film"), h("p", { class: "blank-title" }, "Your clip will play here"),
      h("p", { class: "help" }, `${wanted}, turn the knobs, and press “Make a video”. ${wait}`)),
  );
  $("result-more").replaceChildren();
}

function setStatus(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

/** Draw a request as it is now. */
export function showRun(run, { onAgain }) {
  const isNew = drawn.id !== run || drawn.phase !== run.phase;
  if (isNew) beginPhase(run, onAgain);
  if (!run.ended) drawWork(run);
  drawn = { ...drawn, id: run, phase: run.phase };
}

function beginPhase(run, onAgain) {
  clearInterval(ticking);
  if (run.phase === "done") return drawClip(run);
  if (run.ended) return drawFailure(run, onAgain);
  if (drawn.id !== run || !$("work")) drawWorkFrame(run);
  ticking = setInterval(() => drawTimes(run), 250);
}

// ---------------------------------------------------------------- at work

function drawWorkFrame(run) {
  const picture = document.querySelector(".picture-frame img");
  const isKnown = picture?.naturalWidth > 0;
  const image = h("img", { id: "preview", alt: "", class: "preview before", hidden: !isKnown, src: isKnown && picture.src });
  const bar = h("progress", { id: "progress", "aria-label": "Progress", max: 1 });
  const log = h("details", { class: "log" }, h("summary", {}, "Log"), h("ol", { id: "log" }));
  const cancel = h("button", { type: "button", id: "cancel", class: "secondary", onclick: () => run.cancel() }, "Cancel");
  const words = h("div", { class: "work-words" }, h("p", { id: "work-title" }), h("p", { id: "work-more", class: "help" }));
  const times = h("span", { class: "elapsed" }, icon("clock"), h("span", { id: "elapsed" }));
  const frame = h("div", { class: "work-frame", id: "work-frame" }, image, h("span", { class: "shimmer", "aria-hidden": "true" }));
  shape(frame, run.input);
  $("stage").replaceChildren(
    h("div", { id: "work" }, frame, bar, h("div", { class: "row between" }, words, h("div", { class: "row" }, times, cancel)), log),
  );
  $("result-more").replaceChildren();
}

/** The frame has the clip's shape from the beginning, as far as it is known, so that nothing jumps. */
function shape(frame, input) {
  const named = { square: [1, 1], portrait: [9, 16], landscape: [16, 9] };
  const size = input.video_size;
  const picture = document.querySelector(".picture-frame img");
  let ratio = [16, 9];
  if (size?.width) ratio = [size.width, size.height];
  else if (typeof size === "string") ratio = /4_3/.test(size) ? (/portrait/.test(size) ? [3, 4] : [4, 3]) : named[size.split("_")[0]];
  else if (picture?.naturalWidth) ratio = nearestSize(picture.naturalWidth, picture.naturalHeight);
  frame.style.aspectRatio = `${ratio[0]} / ${ratio[1]}`;
  frame.style.setProperty("--ratio", ratio[0] / ratio[1]);
}

function drawWork(run) {
  const bar = $("progress");
  if (run.phase === "running" && run.progress !== null) bar.value = run.progress;
  else if (run.phase === "fetching") bar.value = 1;
  else bar.removeAttribute("value");
  const [status, title, more] = wordsOf(run);
  setStatus(status);
  $("work-title").textContent = title;
  $("work-more").textContent = run.lost ? "The connection is lost. The request goes on; this page tries again." : more;
  $("cancel").disabled = run.canceling || !run.path || run.phase === "fetching";
  $("cancel").textContent = run.canceling ? "Cancelling" : "Cancel";
  drawPreview(run);
  drawLog(run);
  drawTimes(run);
}

function wordsOf(run) {
  if (run.phase === "sending") return ["Sending", "Sending", ""];
  if (run.phase === "waiting") return ["Waiting", placeWords(run.position), waitWords(run.position)];
  if (run.phase === "fetching") return ["Finishing", "Finishing", "Fetching the clip."];
  const message = run.logs.filter((line) => /^Step /.test(line.message)).at(-1)?.message.replace("/", " of ");
  return ["Running", message ?? "Starting", message ? "" : "The picture is read, the model begins."];
}

function placeWords(position) {
  if (position === null) return "Waiting";
  return position === 0 ? "Next in line" : `${many(position, "request")} ahead`;
}

function waitWords(position) {
  if (!pace?.seconds || position === null) return "";
  const rounds = Math.ceil((position + 1) / (pace.at_once ?? 1));
  return `Ready in about ${seconds(rounds * pace.seconds)}.`;
}

function drawPreview(run) {
  const url = run.preview && here(run.preview, model.public_url);
  if (!url || $("preview").dataset.url === url) return;
  const next = new Image();
  next.onload = () => {
    if (!$("preview")) return;
    Object.assign($("preview"), { src: url, hidden: false, alt: "The clip so far", className: "preview" });
  };
  $("preview").dataset.url = url;
  next.src = url;
}

function drawLog(run) {
  const list = $("log");
  for (const line of run.logs.slice(list.children.length)) {
    list.append(h("li", {}, h("time", {}, line.timestamp.slice(11, 19)), line.message));
  }
}

function drawTimes(run) {
  if ($("elapsed")) $("elapsed").textContent = clock(Date.now() - run.sentAt);
}

// ---------------------------------------------------------------- done

async function drawClip(run) {
  const file = run.result[model.result] ?? run.result.video ?? run.result.image;
  const { clipPlayer } = await import("./player.js");
  const player = clipPlayer(here(file.url, model.public_url), { fps: run.input.fps ?? 25, name: file.file_name });
  drawn.player = player;
  $("stage").replaceChildren(player.root);
  setStatus("Done");
  say(`Done. The clip is ready after ${clock(run.endedAt - run.sentAt)}`);
  const facts = h("dl", { class: "facts" }, factsOf(run, file).map(fact));
  $("result-more").replaceChildren(facts, idLine(run), jsonOf("Request", run.input), jsonOf("Answer", run.result));
  if (run.logs.length) $("result-more").append(logOf(run));
  addAccounts(run, facts);
}

const fact = ([name, value, title]) => h("div", { title }, h("dt", {}, name), h("dd", {}, value));

function factsOf(run, file) {
  return [["Seed", String(run.result.seed ?? "–")], ["File", file.file_size ? bytes(file.file_size) : "–"]];
}

/** Times, price and cost, from the history and the bill: they are exact, and the same after a reload. */
async function addAccounts(run, facts) {
  const query = `request_id=${run.id}`;
  const [past, bill] = await Promise.all([
    call(`/v1/models/requests/search?${query}`).catch(() => null),
    call(`/v1/models/billing-events?${query}`).catch(() => null),
  ]);
  const item = past?.items?.[0];
  const event = bill?.billing_events?.[0];
  const added = [];
  if (item?.started_at) {
    const [sent, started, ended] = [item.sent_at, item.started_at, item.ended_at].map((at) => new Date(at) / 1000);
    added.push(["Waited", seconds(started - sent)], ["Ran", seconds(ended - started)]);
  }
  if (event) added.push(["Price", money(event.cost_total), "What this clip is billed"]);
  if (event?.gpu_cost !== undefined) added.push(["Cost", money(event.gpu_cost), "What this clip cost the operator"]);
  facts.prepend(...added.map(fact));
}

function idLine(run) {
  return h("div", { class: "row between id-line" }, h("span", { class: "help" }, "Request"), h("code", { class: "grow" }, run.id),
    copyButton(() => run.id, "Copy the request's id"));
}

export function jsonOf(title, value) {
  const text = JSON.stringify(value, null, 2);
  const block = h("pre", { class: "code", tabIndex: 0, role: "region", "aria-label": `${title} as JSON` }, text);
  const head = h("summary", {}, `${title} as JSON`);
  return h("details", { class: "json" }, head, h("div", { class: "code-box" }, block, copyButton(() => text, `Copy the ${title.toLowerCase()}`)));
}

function logOf(run) {
  const lines = run.logs.map((line) => h("li", {}, h("time", {}, line.timestamp.slice(11, 19)), line.message));
  return h("details", { class: "log" }, h("summary", {}, `Log, ${many(run.logs.length, "line")}`), h("ol", {}, lines));
}

// ---------------------------------------------------------------- or not

function drawFailure(run, onAgain) {
  const { problem } = run;
  const cancelled = run.phase === "cancelled";
  setStatus(cancelled ? "Cancelled" : "Failed");
  const again = h("button", { type: "button", class: "primary", onclick: onAgain }, cancelled ? "Make it again" : "Try again");
  const key = problem.status === 401 && h("button", { type: "button", class: "primary", onclick: () => askForKey() }, "Enter a key");
  const fields = Object.entries(problem.fields).map(([name, text]) => h("li", {}, h("code", {}, name), ` ${text}`));
  $("stage").replaceChildren(
    h("div", { class: `blank ${cancelled ? "" : "failed"}`, role: "alert" }, icon(cancelled ? "cross" : "warning"),
      h("p", { class: "blank-title" }, problem.title), h("p", { class: "help" }, problem.text),
      fields.length > 0 && h("ul", { class: "blames" }, fields),
      h("div", { class: "row center" }, key || again)),
  );
  const told = problem.body && jsonOf("Answer", problem.body);
  $("result-more").replaceChildren(...[run.id && idLine(run), jsonOf("Request", run.input), told].filter(Boolean));
  if (run.logs.length) $("result-more").append(logOf(run));
}

/** The clip's player, if there is one: the page has keys for it. */
export const shownPlayer = () => drawn.player;

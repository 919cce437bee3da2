// What becomes of a request, as a person sees it: waiting, step by step, the clip, or what went wrong.
import { call } from "./api.js";
import { $, copyButton, h, here, icon, say } from "./dom.js";
import { askForKey } from "./key.js";
import { model, nearestSize } from "./model.js";
import { clipPlayer } from "./player.js";
import { bytes, clock, many, money, seconds, timeOfDay } from "./words.js";

const TICK_MS = 250;
const PACE_MS = 5000; // the service looks no more often either
let timers = [];
let pace = null;
let drawn = { run: null, phase: null };

/** Ask how fast this endpoint is, and tell it where that is wanted; unknown is no failure. */
export async function learnPace() {
  pace = await call(`/playground/pace?endpoint_id=${encodeURIComponent(model.id)}`).catch(() => pace);
  if ($("usual")) $("usual").textContent = pace?.seconds ? `A clip takes about ${seconds(pace.seconds)} on this server.` : "";
  if (drawn.phase === "waiting") drawWork(drawn.run);
}

/** What is there before anything was made. */
export function showEmpty() {
  const wanted = model.schema.required?.includes("prompt") ? "Say what it should show" : "Choose a picture";
  setStatus("");
  $("stage").replaceChildren(
    h("div", { class: "blank" }, icon("film"), h("p", { class: "blank-title" }, "Your clip will play here"),
      h("p", { class: "help" }, `${wanted}, turn the knobs, and press “Make a video”. `, h("span", { id: "usual" }))),
  );
  $("result-more").replaceChildren();
}

function setStatus(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

/** Draw a request as it is now. */
export function showRun(run, { onAgain }) {
  if (drawn.run !== run || drawn.phase !== run.phase) beginPhase(run, onAgain);
  if (!run.ended) drawWork(run);
}

function beginPhase(run, onAgain) {
  const isOther = drawn.run !== run;
  forget();
  drawn = { run, phase: run.phase };
  if (run.phase === "done") return drawClip(run);
  if (run.ended) return drawFailure(run, onAgain);
  if (isOther) drawWorkFrame(run);
  timers = [setInterval(() => drawTimes(run), TICK_MS)];
  if (run.phase !== "waiting") return;
  learnPace();
  timers.push(setInterval(learnPace, PACE_MS));
}

/** Nothing is drawn from here on but what comes next. */
function forget() {
  timers.forEach(clearInterval);
  timers = [];
  drawn = { run: null, phase: null };
}

// ---------------------------------------------------------------- at work

function drawWorkFrame(run) {
  const picture = document.querySelector(".picture-frame img");
  const isKnown = picture?.naturalWidth > 0;
  const image = h("img", { id: "preview", alt: "", class: "preview before", hidden: !isKnown, src: isKnown && picture.src });
  const bar = h("progress", { id: "progress", "aria-label": "Progress", max: 1 });
  const log = h("details", { class: "log" }, h("summary", {}, "Log"), h("ol", { id: "log" }));
  const cancel = h("button", { type: "button", id: "cancel", class: "secondary", onclick: () => cancelRun(run) }, "Cancel");
  const words = h("div", { class: "work-words" }, h("p", { id: "work-title" }), h("p", { id: "work-more", class: "help" }));
  const times = h("span", { class: "elapsed" }, icon("clock"), h("span", { id: "elapsed" }));
  const frame = h("div", { class: "work-frame", id: "work-frame" }, image, h("span", { class: "shimmer", "aria-hidden": "true" }));
  shape(frame, run.input);
  $("stage").replaceChildren(
    h("div", { id: "work" }, frame, bar, h("div", { class: "row between" }, words, h("div", { class: "row" }, times, cancel)), log),
  );
  $("result-more").replaceChildren();
}

async function cancelRun(run) {
  await run.cancel();
  if (run.notice) say(run.notice);
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
  $("work-more").textContent = run.lost ? "The connection is lost. The request goes on; this page tries again." : run.notice || more;
  $("cancel").disabled = run.canceling || run.phase === "fetching";
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

/** When it will be there: what runs, what goes before it and itself, as many at a time as are made at once. */
function waitWords(position) {
  if (pace?.at_once === 0) return "Nothing is ready to make it yet. It waits until a worker has started.";
  if (!pace?.seconds || !pace.at_once || position === null) return "";
  const rounds = Math.ceil((pace.running + position + 1) / pace.at_once);
  return `Ready in about ${seconds(rounds * pace.seconds)}.`;
}

function drawPreview(run) {
  const url = run.preview && here(run.preview, model.public_url);
  if (!url || $("preview").dataset.url === url) return;
  const next = new Image();
  next.onload = () => {
    if ($("preview")?.dataset.url !== url) return; // of another request by now, or a later one has come
    Object.assign($("preview"), { src: url, hidden: false, alt: "The clip so far", className: "preview" });
  };
  $("preview").dataset.url = url;
  next.src = url;
}

function drawLog(run) {
  const list = $("log");
  for (const line of run.logs.slice(list.children.length)) {
    list.append(logLine(line));
  }
}

const logLine = ({ timestamp, message }) => h("li", {}, h("time", { dateTime: timestamp }, timeOfDay(timestamp)), message);

function drawTimes(run) {
  if ($("elapsed")) $("elapsed").textContent = clock(Date.now() - run.sentAt);
}

// ---------------------------------------------------------------- done

function drawClip(run) {
  const file = run.result[model.result] ?? run.result.video ?? run.result.image;
  const player = clipPlayer(here(file.url, model.public_url), { fps: run.input.fps ?? model.fps, name: file.file_name });
  $("stage").replaceChildren(player);
  setStatus("Done");
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
    run.past ? { items: [run.past] } : call(`/v1/models/requests/search?${query}`).catch(() => null),
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

function jsonOf(title, value) {
  const text = JSON.stringify(value, null, 2);
  const block = h("pre", { class: "code", tabIndex: 0, role: "region", "aria-label": `${title} as JSON` }, text);
  const head = h("summary", {}, `${title} as JSON`);
  return h("details", { class: "json" }, head, h("div", { class: "code-box" }, block, copyButton(() => text, `Copy the ${title.toLowerCase()}`)));
}

function logOf(run) {
  return h("details", { class: "log" }, h("summary", {}, `Log, ${many(run.logs.length, "line")}`), h("ol", {}, run.logs.map(logLine)));
}

// ---------------------------------------------------------------- or not

function drawFailure(run, onAgain) {
  const { problem } = run;
  const cancelled = run.phase === "cancelled";
  const again = h("button", { type: "button", class: "primary", onclick: onAgain }, cancelled ? "Make it again" : "Try again");
  const key = problem.status === 401 && h("button", { type: "button", class: "primary", onclick: () => askForKey() }, "Enter a key");
  drawProblem(problem, key || again, cancelled);
  const told = problem.body && jsonOf("Answer", problem.body);
  $("result-more").replaceChildren(...[run.id && idLine(run), jsonOf("Request", run.input), told].filter(Boolean));
  if (run.logs.length) $("result-more").append(logOf(run));
}

/** What there is no clip for, and what may be done about it. */
function drawProblem({ title, text, fields }, action, cancelled = false) {
  const blames = Object.entries(fields).map(([name, words]) => h("li", {}, h("code", {}, name), ` ${words}`));
  setStatus(cancelled ? "Cancelled" : "Failed");
  $("stage").replaceChildren(
    h("div", { class: `blank ${cancelled ? "" : "failed"}`, role: "alert" }, icon(cancelled ? "cross" : "warning"),
      h("p", { class: "blank-title" }, title), h("p", { class: "help" }, text),
      blames.length > 0 && h("ul", { class: "blames" }, blames),
      action && h("div", { class: "row center" }, action)),
  );
}

/** A failure that is no request's. */
export function showProblem(problem) {
  forget();
  drawProblem(problem);
  $("result-more").replaceChildren();
}

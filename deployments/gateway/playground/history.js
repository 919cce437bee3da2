// Past requests of this key, or of everybody's: found by endpoint, ending and text; opened, made again, compared by two.
import { call, Problem } from "./api.js";
import { $, h, here, icon, labelled, say } from "./dom.js";
import { askForKey, currentKey, onKey } from "./key.js";
import { model } from "./model.js";
import { ago, labelOf, many, money, seconds } from "./words.js";

const PAGE = 24;
const ENDINGS = [["", "Any ending"], ["success", "Made"], ["user_error", "Input refused"], ["cancelled", "Cancelled"], ["error", "Failed"]];
let parts = null;
let open = null;
let cursor = null;
let asked = 0;
const chosen = new Set(); // ids of the clips to compare, the latest last

/** Show the history; `openPast` puts one of its requests back into the form. */
export function showHistory(openPast) {
  open = openPast;
  if (!parts) {
    parts = drawFrame();
    onKey(beginAnew);
  }
  load();
}

function drawFrame() {
  const endpoint = h("select", { id: "filter-endpoint" }, new Option("All endpoints", ""), model.endpoints.map(({ id, title }) => new Option(title, id)));
  const status = h("select", { id: "filter-status" }, ENDINGS.map(([value, text]) => new Option(text, value)));
  const text = h("input", { type: "search", id: "filter-text", placeholder: "Prompt, file name, value" });
  const everybodys = h("input", { type: "checkbox", id: "filter-everybodys" });
  const whose = h("label", { class: "check", hidden: true }, everybodys, "Everybody's");
  const filters = h("div", { class: "filters", role: "search", "aria-label": "Filter the history" },
    labelled("Endpoint", endpoint), labelled("Ending", status), labelled("Input contains", text), whose);
  const list = h("ul", { class: "past", id: "past" });
  const more = h("button", { type: "button", class: "secondary", hidden: true, onclick: () => loadPage(cursor) }, "Show more");
  const state = h("div", { id: "history-state" });
  const tray = drawTray();
  const compared = h("div", { id: "compared" });
  endpoint.onchange = status.onchange = everybodys.onchange = load;
  let typing = null;
  text.oninput = () => {
    clearTimeout(typing);
    typing = setTimeout(load, 300);
  };
  $("history").append(
    h("div", { class: "intro" }, h("div", {}, h("h1", {}, "History"), h("p", { class: "lead" }, "What has been made. Choose two clips to compare them."))),
    filters, compared, state, list, h("div", { class: "row center" }, more), tray.root,
  );
  return { endpoint, status, text, everybodys, whose, list, more, state, tray, compared };
}

// ---------------------------------------------------------------- loading

/** Another key, or none: nothing stays of what the one before was shown. */
function beginAnew() {
  parts.compared.replaceChildren();
  parts.everybodys.checked = false;
  parts.whose.hidden = true;
  chosen.clear();
  followChoice();
  load();
}

async function load() {
  asked++; // what was asked before is wanted no more
  parts.list.replaceChildren();
  if (!currentKey()) return showState("key", "A key is needed", "The history is the key's own.", "Enter a key", () => askForKey());
  await loadPage(null);
}

async function loadPage(from) {
  const mine = ++asked;
  if (!from) showState("clock", "Loading", "");
  try {
    const answer = await call(`/v1/models/requests/search?${queryFrom(from)}`);
    if (mine !== asked) return; // another question came after this one
    cursor = answer.next_cursor;
    parts.more.hidden = !answer.has_more;
    parts.whose.hidden = answer.mine === undefined; // who may see nobody else's is not told
    parts.list.append(...answer.items.map(card));
    showCount();
  } catch (problem) {
    if (mine === asked) showProblem(problem, load);
  }
}

function queryFrom(from) {
  const query = new URLSearchParams({ expand: "short_payloads", limit: PAGE, mine: !parts.everybodys.checked });
  const wanted = { endpoint_id: parts.endpoint.value, status: parts.status.value, query: parts.text.value.trim(), cursor: from };
  for (const [name, value] of Object.entries(wanted)) if (value) query.set(name, value);
  return query;
}

/** Requests with all that was kept of them, in this order. A list leaves long inputs out. */
async function find(...ids) {
  const { items } = await call(`/v1/models/requests/search?${new URLSearchParams({ expand: "payloads", request_id: ids })}`);
  const found = ids.map((id) => items.find((each) => each.request_id === id));
  if (!found.every(Boolean)) throw new Problem("Not found", "It is in the history no longer.");
  return found;
}

function showCount() {
  const count = parts.list.children.length;
  const filtered = parts.endpoint.value || parts.status.value || parts.text.value.trim();
  if (count) {
    parts.state.replaceChildren();
    say(`${many(count, "request")} shown`);
  } else if (filtered) showState("picture", "Nothing matches", "Choose another endpoint or ending, or search for less.");
  else showState("film", "Nothing made yet", "Clips that this key makes are listed here.");
}

function showState(picture, title, text, action, act) {
  parts.more.hidden = true;
  const button = action && h("button", { type: "button", class: "primary", onclick: act }, action);
  parts.state.replaceChildren(h("div", { class: "blank" }, icon(picture), h("p", { class: "blank-title" }, title), h("p", { class: "help" }, text), button));
  say(`${title}. ${text}`);
}

function showProblem({ title = "Something went wrong", text = "Load the page again." }, again) {
  showState("warning", title, text, "Try again", again);
  parts.state.scrollIntoView({ block: "nearest" });
}

// ---------------------------------------------------------------- one request

export function clipOf(item) {
  const file = item.json_output?.video ?? item.json_output?.image;
  return file?.url ? here(file.url, model.public_url) : null;
}

export const titleOf = (id) => model.endpoints.find((each) => each.id === id)?.title ?? id;

function card(item) {
  const clip = clipOf(item);
  const name = `${titleOf(item.endpoint_id)}, ${ago(item.ended_at)}`;
  const actions = item.json_input
    ? [
        action("Open", `Open: ${name}`, () => openWhole(item)),
        action("Same seed", `Make again with the same seed: ${name}`, () => openWhole(item, "same seed")),
        action("New seed", `Make again with a new seed: ${name}`, () => openWhole(item, "new seed")),
      ]
    : [h("p", { class: "help" }, "Its input was not kept.")];
  return h("li", { class: "past-item" },
    h("div", { class: "thumb" }, clip ? thumb(clip) : noClip(item), clip && pick(item, name)),
    h("div", { class: "past-words" }, h("p", { class: "past-title" }, summary(item)), h("p", { class: "help" }, factsOf(item).join(" · "))),
    h("div", { class: "row past-actions" }, actions));
}

const action = (text, label, act) => h("button", { type: "button", class: "small", "aria-label": label, onclick: act }, text);

async function openWhole({ request_id: id }, again) {
  const mine = asked;
  try {
    const [item] = await find(id);
    if (mine === asked) open(item, again);
  } catch (problem) {
    if (mine === asked) showProblem(problem, load);
  }
}

function factsOf(item) {
  const whose = item.mine === false && `by ${item.auth_method}`;
  const took = item.duration !== null && seconds(item.duration);
  return [titleOf(item.endpoint_id), whose, ago(item.ended_at), took, item.cost !== undefined && `cost ${money(item.cost)}`].filter(Boolean);
}

function thumb(url) {
  const video = h("video", { src: `${url}#t=0.05`, preload: "metadata", muted: true, loop: true, playsInline: true, tabIndex: -1 });
  video.setAttribute("aria-hidden", "true");
  video.onpointerenter = () => video.play().catch(() => {});
  video.onpointerleave = () => video.pause();
  video.onerror = () => video.replaceWith(h("p", { class: "help" }, "The clip has been deleted."));
  return video;
}

function noClip(item) {
  const why = item.json_output?.detail;
  const text = Array.isArray(why) ? why[0]?.msg : why;
  return h("div", { class: "no-clip" }, icon(item.status_code === 499 ? "cross" : "warning"), h("strong", {}, endingOf(item)), text && h("p", { class: "help" }, text));
}

function endingOf({ status_code: status }) {
  if (status === 499) return "Cancelled";
  if (status < 300) return "Not kept";
  return status < 500 ? "Input refused" : "Failed";
}

/** What tells this request from the others: its prompt, or its numbers. */
function summary(item) {
  const input = item.json_input;
  if (!input) return item.request_id.slice(0, 8);
  if (input.prompt) return input.prompt;
  const told = Object.entries(input).filter(([name, value]) => typeof value === "number" && name !== "seed");
  return told.map(([name, value]) => `${labelOf(name)} ${value}`).join(", ") || "A long input";
}

// ---------------------------------------------------------------- comparing

function pick({ request_id: id }, name) {
  const box = h("input", { type: "checkbox", name: "compare", value: id, checked: chosen.has(id), "aria-label": `Compare: ${name}` });
  box.onchange = () => {
    chosen.delete(id);
    if (box.checked) chosen.add(id);
    if (chosen.size > 2) chosen.delete([...chosen][0]);
    followChoice();
  };
  return h("label", { class: "pick" }, box, "Compare");
}

function drawTray() {
  const words = h("p");
  const compare = h("button", { type: "button", class: "primary", id: "compare", onclick: showComparison }, "Compare");
  const clear = h("button", { type: "button", class: "quiet" }, "Clear");
  clear.onclick = () => {
    chosen.clear();
    followChoice();
    parts.list.querySelector("[name=compare]")?.focus();
  };
  return { root: h("div", { class: "tray", hidden: true, id: "tray" }, words, clear, compare), words, compare };
}

/** The boxes and the tray say what is chosen. */
function followChoice() {
  for (const box of parts.list.querySelectorAll("[name=compare]")) box.checked = chosen.has(box.value);
  const { root, words, compare } = parts.tray;
  root.hidden = chosen.size === 0;
  compare.disabled = chosen.size < 2;
  words.textContent = chosen.size < 2 ? "Choose one more clip" : "Two clips chosen";
}

async function showComparison() {
  const ids = [...chosen];
  const isWanted = () => ids.length === chosen.size && ids.every((id) => chosen.has(id));
  try {
    const [{ comparison }, items] = await Promise.all([import("./compare.js"), find(...ids)]);
    if (!isWanted()) return;
    parts.compared.replaceChildren(comparison(items, closeComparison));
    parts.tray.root.hidden = true;
    parts.compared.scrollIntoView({ block: "start" });
    parts.compared.querySelector("h2").focus();
  } catch (problem) {
    if (isWanted()) showProblem(problem, showComparison);
  }
}

function closeComparison() {
  parts.compared.replaceChildren();
  followChoice();
  (parts.tray.root.hidden ? parts.text : parts.tray.compare).focus();
}

// Past requests of this key: found by endpoint, ending and text; opened, made again, and compared two by two.
import { call } from "./api.js";
import { $, h, here, icon, say } from "./dom.js";
import { askForKey, currentKey, onKey } from "./key.js";
import { model } from "./model.js";
import { ago, labelOf, many, money, seconds } from "./words.js";

const PAGE = 24;
const ENDINGS = [["", "Any ending"], ["success", "Made"], ["user_error", "Input refused"], ["error", "Failed"]];
let parts = null;
let open = null;
let cursor = null;
let asked = 0;
const chosen = new Map();

/** Show the history; `openPast` puts one of its requests back into the form. */
export function showHistory(openPast) {
  open = openPast;
  if (!parts) {
    parts = drawFrame();
    onKey(load);
  }
  load();
}

function drawFrame() {
  const endpoint = h("select", { id: "filter-endpoint" }, new Option("All endpoints", ""), model.endpoints.map(({ id, title }) => new Option(title, id)));
  const status = h("select", { id: "filter-status" }, ENDINGS.map(([value, text]) => new Option(text, value)));
  const text = h("input", { type: "search", id: "filter-text", placeholder: "Prompt, file name, value" });
  const filters = h("div", { class: "filters", role: "search", "aria-label": "Filter the history" },
    labelled("Endpoint", endpoint), labelled("Ending", status), labelled("Input contains", text));
  const list = h("ul", { class: "past", id: "past" });
  const more = h("button", { type: "button", class: "secondary", hidden: true, onclick: () => loadPage(cursor) }, "Show more");
  const state = h("div", { id: "history-state" });
  const tray = h("div", { class: "tray", hidden: true, id: "tray" });
  const compared = h("div", { id: "compared" });
  endpoint.onchange = status.onchange = load;
  let typing = null;
  text.oninput = () => {
    clearTimeout(typing);
    typing = setTimeout(load, 300);
  };
  $("history").append(
    h("div", { class: "intro" }, h("div", {}, h("h1", {}, "History"), h("p", { class: "lead" }, "What this key has made. Choose two clips to compare them."))),
    filters, compared, state, list, h("div", { class: "row center" }, more), tray,
  );
  return { endpoint, status, text, list, more, state, tray, compared };
}

const labelled = (text, control) => h("label", { class: "stack tight" }, h("span", { class: "label" }, text), control);

// ---------------------------------------------------------------- loading

async function load() {
  if (!currentKey()) return showState("key", "A key is needed", "The history is the key's own.", "Enter a key", () => askForKey());
  parts.list.replaceChildren();
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
    parts.list.append(...answer.items.map(card));
    showCount();
  } catch (problem) {
    if (mine === asked) showState("warning", problem.title, problem.text, "Try again", load);
  }
}

function queryFrom(from) {
  const query = new URLSearchParams({ expand: "payloads", limit: PAGE });
  const wanted = { endpoint_id: parts.endpoint.value, status: parts.status.value, query: parts.text.value.trim(), cursor: from };
  for (const [name, value] of Object.entries(wanted)) if (value) query.set(name, value);
  return query;
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
        action("Open", `Open: ${name}`, () => open(item)),
        action("Same seed", `Make again with the same seed: ${name}`, () => open(item, "same seed")),
        action("New seed", `Make again with a new seed: ${name}`, () => open(item, "new seed")),
      ]
    : [h("p", { class: "help" }, "Its input was not kept.")];
  return h("li", { class: "past-item" },
    h("div", { class: "thumb" }, clip ? thumb(clip) : noClip(item), clip && pick(item, name)),
    h("div", { class: "past-words" },
      h("p", { class: "past-title" }, summary(item)),
      h("p", { class: "help" }, [titleOf(item.endpoint_id), ago(item.ended_at), item.duration !== null && seconds(item.duration), item.cost !== undefined && `cost ${money(item.cost)}`].filter(Boolean).join(" · "))),
    h("div", { class: "row past-actions" }, actions));
}

const action = (text, label, act) => h("button", { type: "button", class: "small", "aria-label": label, onclick: act }, text);

function thumb(url) {
  const video = h("video", { src: `${url}#t=0.05`, preload: "metadata", muted: true, loop: true, playsInline: true, tabIndex: -1 });
  video.setAttribute("aria-hidden", "true");
  video.onpointerenter = () => video.play().catch(() => {});
  video.onpointerleave = () => video.pause();
  video.onerror = () => video.replaceWith(h("p", { class: "help" }, "The clip has been deleted."));
  return video;
}

function noClip(item) {
  const words = item.status_code === 499 ? "Cancelled" : item.status_code === 422 ? "Input refused" : item.status_code < 300 ? "Not kept" : "Failed";
  const why = item.json_output?.detail;
  const text = Array.isArray(why) ? why[0]?.msg : why;
  return h("div", { class: "no-clip" }, icon(item.status_code === 499 ? "cross" : "warning"), h("strong", {}, words), text && h("p", { class: "help" }, text));
}

/** What tells this request from the others: its prompt, or the values that are not usual. */
function summary(item) {
  const input = item.json_input;
  if (!input) return item.request_id.slice(0, 8);
  if (input.prompt) return input.prompt;
  const told = Object.entries(input).filter(([name, value]) => typeof value === "number" && name !== "seed");
  return told.map(([name, value]) => `${labelOf(name)} ${value}`).join(", ");
}

// ---------------------------------------------------------------- comparing

function pick(item, name) {
  const box = h("input", { type: "checkbox", name: "compare", checked: chosen.has(item.request_id), "aria-label": `Compare: ${name}` });
  box.onchange = () => {
    if (box.checked) chosen.set(item.request_id, { item, box });
    else chosen.delete(item.request_id);
    if (chosen.size > 2) drop(chosen.keys().next().value);
    drawTray();
  };
  return h("label", { class: "pick" }, box, "Compare");
}

function drop(id) {
  chosen.get(id).box.checked = false;
  chosen.delete(id);
}

function drawTray() {
  parts.tray.hidden = chosen.size === 0;
  const compare = h("button", { type: "button", class: "primary", disabled: chosen.size < 2, id: "compare", onclick: showComparison }, "Compare");
  const clear = h("button", { type: "button", class: "quiet", onclick: () => ([...chosen.keys()].forEach(drop), drawTray()) }, "Clear");
  parts.tray.replaceChildren(h("p", {}, chosen.size < 2 ? "Choose one more clip" : "Two clips chosen"), clear, compare);
}

async function showComparison() {
  const { comparison } = await import("./compare.js");
  const items = [...chosen.values()].map(({ item }) => item);
  const close = () => parts.compared.replaceChildren();
  parts.compared.replaceChildren(comparison(items, close));
  parts.tray.hidden = true;
  parts.compared.scrollIntoView({ block: "start" });
  parts.compared.querySelector("h2").focus();
}

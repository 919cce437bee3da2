// The page of an endpoint: brings form, result, code and key together, and loads the rest when it is wanted.
import { call } from "./api.js";
import { drawCode, startCode } from "./code.js";
import { $, copyButton, h, say, tabs } from "./dom.js";
import { blame, check, completeInput, field, fill, onForm, showFormProblem, startForm } from "./form.js";
import { askForKey, currentKey, findKey, onKey, startKey } from "./key.js";
import { model } from "./model.js";
import { learnPace, showEmpty, showRun, shownPlayer } from "./result.js";
import { previewsOf, Run } from "./run.js";
import { money } from "./words.js";

const RUNNING = `run of ${model.id}`;
const HANDED = "request to open";
const REFUSED = "This key was not accepted. Enter another one; what you entered stays.";
let views;
let current = null;

// ---------------------------------------------------------------- what the page says of the endpoint

function drawEndpoints() {
  const links = model.endpoints.map(({ id, title, description }) =>
    h("a", { href: `/models/${id}`, title: description, "aria-current": id === model.id && "page" }, title),
  );
  $("endpoints").append(...links);
  $("about").textContent = model.description;
  const { price } = model;
  const unit = price && (price.unit_price === 0 ? "Free of charge" : `${money(price.unit_price, price.currency)} a ${price.unit}`);
  $("intro-facts").append(
    h("code", { class: "endpoint-id" }, model.id),
    copyButton(() => model.id, "Copy the endpoint's id"),
    h("span", { class: "badge" }, unit ?? "No price set"),
  );
}

// ---------------------------------------------------------------- one clip

async function run() {
  if ($("run").disabled) return;
  showFormProblem();
  const wrong = check();
  if (wrong.length) return showFormProblem("Not sent yet.", wrong.join(" "));
  if (!currentKey()) return askForKey("Making a video needs a key.");
  setBusy(true);
  views.show("tab-result");
  try {
    const input = await completeInput();
    await follow(new Run(model.id, input, show), true);
  } catch (problem) {
    showFormProblem(`${problem.title ?? "Something went wrong"}.`, problem.text ?? String(problem));
    if (problem.status === 401) askForKey(REFUSED);
  } finally {
    setBusy(false);
  }
}

async function follow(next, isNew) {
  current = next;
  show(next);
  revealOutput();
  if (isNew) await next.submit(previewsOf(next.input));
  if (!next.ended) {
    sessionStorage.setItem(RUNNING, JSON.stringify(next.saved));
    learnPace();
    await next.follow();
  }
  if (current === next) end(next);
}

function end(finished) {
  if (finished.result?.seed !== undefined) field("seed")?.note(finished.result.seed);
  if (finished.phase !== "failed") return;
  const loose = blame(finished.problem.fields);
  if (finished.problem.status === 401) askForKey(REFUSED);
  say(`${finished.problem.title}. ${finished.problem.text} ${loose.map(([, text]) => text).join(" ")}`);
}

function show(next) {
  if (current === next) showRun(next, { onAgain: run });
}

function setBusy(busy) {
  $("run").disabled = busy;
  $("run").textContent = busy ? "Working" : "Make a video";
  $("form").setAttribute("aria-busy", busy);
}

/** On a narrow screen the output lies below the form: bring it into view when something happens there. */
function revealOutput() {
  if (matchMedia("(max-width: 60rem)").matches) $("panel-result").parentElement.scrollIntoView({ block: "start" });
}

/** A request that ran when the page was left is taken up again. */
async function takeUpAgain() {
  const saved = JSON.parse(sessionStorage.getItem(RUNNING) ?? "null");
  if (!saved || !currentKey()) return;
  setBusy(true);
  await follow(Run.resumed(saved, show), false);
  setBusy(false);
}

// ---------------------------------------------------------------- the past

function showPage() {
  const past = location.hash === "#history";
  $("history").hidden = !past;
  $("playground").hidden = past;
  for (const [id, on] of [["to-history", past], ["to-playground", !past]]) {
    if (on) $(id).setAttribute("aria-current", "page");
    else $(id).removeAttribute("aria-current");
  }
  if (past) import("./history.js").then(({ showHistory }) => showHistory(openPast));
}

/** Put an earlier request into the form, and its clip beside it; or make it once more. */
async function openPast(item, again = null) {
  if (item.endpoint_id !== model.id) {
    sessionStorage.setItem(HANDED, JSON.stringify({ id: item.request_id, again }));
    location.assign(`/models/${item.endpoint_id}`);
    return;
  }
  const { seed, ...rest } = item.json_input ?? {};
  fill(again === "new seed" ? rest : { ...rest, seed });
  history.replaceState(null, "", location.pathname);
  showPage();
  scrollTo(0, 0);
  if (again) return run();
  await showPastRun(item);
}

async function showPastRun(item) {
  const path = `/queue/${item.endpoint_id.split("/").slice(0, 2).join("/")}/requests/${item.request_id}`;
  const saved = { endpoint: item.endpoint_id, input: item.json_input, id: item.request_id, path, sentAt: Date.parse(item.sent_at) };
  views.show("tab-result");
  await follow(Run.resumed(saved, show), false);
}

async function openHanded() {
  const handed = JSON.parse(sessionStorage.getItem(HANDED) ?? "null");
  sessionStorage.removeItem(HANDED);
  if (!handed) return false;
  const found = await call(`/v1/models/requests/search?request_id=${handed.id}&expand=payloads`).catch(() => null);
  if (found?.items?.[0]) await openPast(found.items[0], handed.again);
  return Boolean(found?.items?.[0]);
}

// ---------------------------------------------------------------- the page

function showSweep() {
  return import("./sweep.js").then(({ startSweep }) => startSweep());
}

function keys(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("playground").hidden && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    run();
  }
}

async function start() {
  startKey();
  drawEndpoints();
  views = tabs($("views"), (tab) => tab.id === "tab-sweep" && showSweep());
  startForm();
  startCode();
  drawCode();
  onForm(drawCode);
  showEmpty();
  $("form").onsubmit = (event) => {
    event.preventDefault();
    run();
  };
  $("open-sweep").onclick = () => {
    views.show("tab-sweep");
    revealOutput();
  };
  document.addEventListener("keydown", keys);
  addEventListener("hashchange", showPage);
  document.documentElement.dataset.ready = "yes"; // the page answers from here on
  await findKey();
  onKey(afterKey);
  await afterKey();
  showPage();
  if (!(await openHanded())) await takeUpAgain();
}

async function afterKey() {
  if (!currentKey()) return;
  await learnPace();
  if (!current) showEmpty();
}

start();

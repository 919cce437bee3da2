// The page of an endpoint: brings form, result, code and key together, and loads the rest when it is wanted.
import { call, Problem } from "./api.js";
import { drawCode, startCode } from "./code.js";
import { $, copyButton, h, icon, keep, kept, say, tabs } from "./dom.js";
import { blame, check, completeInput, field, fill, onForm, showFormProblem, startForm } from "./form.js";
import { askForKey, currentKey, findKey, keyId, onKey, startKey } from "./key.js";
import { model } from "./model.js";
import { learnPace, showEmpty, showProblem, showRun } from "./result.js";
import { previewsOf, Run, RUNNING, SWEEPING } from "./run.js";
import { money } from "./words.js";

const HANDED = "request to open";
const REFUSED = "This key was not accepted. Enter another one; what you entered stays.";
let views;
let busy = false;
let live = null; // what this page makes, or has made last
let shown = null; // what the result shows: that, or a request of the past

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
  if (busy) return showFormProblem("Not sent.", "A clip is at work. Wait until it has ended, or cancel it.");
  showFormProblem();
  const wrong = check();
  if (wrong.length) return showFormProblem("Not sent yet.", wrong.join(" "));
  if (!currentKey()) return askForKey("Making a video needs a key.");
  setBusy(true);
  views.show("tab-result");
  try {
    await make(await completeInput());
  } catch (problem) {
    showFormProblem(`${problem.title ?? "Something went wrong"}.`, problem.text ?? String(problem));
    if (problem.status === 401) askForKey(REFUSED);
  } finally {
    setBusy(false);
  }
}

async function make(input) {
  const next = new Run(model.id, input, redraw);
  if (live?.isUnsure && JSON.stringify(live.input) === JSON.stringify(input)) next.key = live.key; // so it is made once
  live = next;
  show(next);
  revealOutput();
  await next.submit(previewsOf(input));
  await follow(next);
  if (next.phase === "failed") tellFailure(next.problem);
}

/** Follow it to its end, over a reload if need be. */
async function follow(run) {
  if (!run.ended) {
    keep(RUNNING, { ...run.saved, keyId: keyId() });
    await run.follow();
  }
  sessionStorage.removeItem(RUNNING);
  showFormProblem(); // who was told to wait may go on
  if (run.result?.seed !== undefined) field("seed")?.note(run.result.seed);
  if (run.phase === "done") say("Done. Your clip is ready.");
}

function tellFailure(problem) {
  const loose = blame(problem.fields);
  if (problem.status === 401) askForKey(REFUSED);
  say(`${problem.title}. ${problem.text} ${loose.map(([, text]) => text).join(" ")}`);
}

/** Let the result show a request: the one at work, or another while that goes on. */
function show(run) {
  shown = run;
  redraw(run);
}

function redraw(run) {
  if (shown === run) showRun(run, { onAgain: startAgain });
  pointBack();
}

const startAgain = () => run();

function drawWayBack() {
  const back = h("button", { type: "button", class: "small" }, "Show yours");
  back.onclick = () => {
    show(live);
    $("tab-result").focus();
  };
  $("stage").before(h("div", { id: "back-to-live", class: "notice row between", hidden: true }, h("p", { id: "back-words" }), back));
}

function pointBack() {
  const isAway = live !== null && shown !== live;
  $("back-to-live").hidden = !isAway;
  if (isAway) $("back-words").textContent = live.ended ? "This is another request." : "This is another request. Yours is at work.";
}

function setBusy(on) {
  busy = on;
  $("run").disabled = on;
  $("run").textContent = on ? "Working" : "Make a video";
  $("form").setAttribute("aria-busy", on);
}

/** On a narrow screen the output lies below the form: bring it into view when something happens there. */
function revealOutput() {
  if (matchMedia("(max-width: 60rem)").matches) $("panel-result").parentElement.scrollIntoView({ block: "start" });
}

/** A request of this key that ran when the page was left is taken up again, without disturbing who reads. */
async function takeUpAgain() {
  const saved = kept(RUNNING);
  if (saved?.keyId !== keyId()) return;
  setBusy(true);
  live = Run.resumed(saved, redraw);
  show(live);
  try {
    await follow(live);
  } finally {
    setBusy(false);
  }
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
  if (past) use(import("./history.js"), $("history"), ({ showHistory }) => showHistory(openPast));
}

/** Put an earlier request into the form, and what became of it beside it; or make it once more. */
async function openPast(item, again = null) {
  const isServed = model.endpoints.some(({ id }) => id === item.endpoint_id);
  if (isServed && item.endpoint_id !== model.id) return handOver(item, again);
  leaveHistory();
  if (!isServed) return tell(new Problem("This endpoint is gone", `${item.endpoint_id} is served here no longer. What it made is in the history.`));
  const { seed, ...rest } = item.json_input ?? {};
  fill(again === "new seed" ? rest : { ...rest, seed });
  if (again) return run();
  show(Run.past(item, redraw));
}

function leaveHistory() {
  history.replaceState(null, "", location.pathname);
  showPage();
  scrollTo(0, 0);
  views.show("tab-result");
}

function handOver({ request_id: id, endpoint_id: endpoint }, again) {
  keep(HANDED, { id, again });
  location.assign(`/models/${endpoint}`);
}

/** Open what the page of another endpoint handed over. */
async function openHanded() {
  const handed = kept(HANDED);
  if (!handed) return;
  sessionStorage.removeItem(HANDED);
  try {
    const { items } = await call(`/v1/models/requests/search?request_id=${handed.id}&expand=payloads`);
    if (!items.length) throw new Problem("Not found", "The request is in the history no longer.");
    await openPast(items[0], handed.again);
  } catch (problem) {
    tell(problem);
  }
}

/** Say in the result's place why there is none. */
function tell(problem) {
  shown = problem;
  showProblem(problem);
  pointBack();
}

// ---------------------------------------------------------------- the page

/** Use a part of the page that is loaded when it is wanted. Browsers keep that a load has failed, so all is loaded again. */
async function use(loading, place, begin) {
  const part = await loading.catch(() => null);
  if (part) return begin(part);
  const again = h("button", { type: "button", class: "primary", onclick: () => location.reload() }, "Load the page again");
  place.replaceChildren(h("div", { class: "blank failed", role: "alert" }, icon("warning"), h("p", { class: "blank-title" }, "This could not be loaded"),
    h("p", { class: "help" }, "Check the connection. What you entered stays here."), h("div", { class: "row center" }, again)));
}

/** To the content, by focus alone: the address says which page is seen. */
function skip(event) {
  event.preventDefault();
  $("main").focus();
}

const showSweep = () => use(import("./sweep.js"), $("panel-sweep"), ({ startSweep }) => startSweep());

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
  drawWayBack();
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
  document.querySelector(".skip").onclick = skip;
  document.addEventListener("keydown", keys);
  addEventListener("hashchange", showPage);
  showPage();
  document.documentElement.dataset.ready = "yes"; // the page answers from here on
  await findKey();
  onKey(afterKey);
  afterKey();
  if (kept(SWEEPING)) views.show("tab-sweep");
  if (currentKey()) openHanded();
}

function afterKey() {
  if (!currentKey()) return;
  learnPace();
  if (!busy) takeUpAgain();
}

start();

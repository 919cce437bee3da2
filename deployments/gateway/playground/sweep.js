// A sweep: the same picture and seed with three to five values of one parameter, side by side and played in step.
import { $, h, here, icon, keep, kept, labelled, say } from "./dom.js";
import { scaleOf } from "./fields.js";
import { check, completeInput, draft, field, numericFields, showFormProblem } from "./form.js";
import { askForKey, currentKey, keyId } from "./key.js";
import { model } from "./model.js";
import { Run, SWEEPING } from "./run.js";
import { together } from "./together.js";
import { labelOf, many, money } from "./words.js";

const COUNTS = [3, 4, 5];
let parts = null;

export function startSweep() {
  if (parts) return;
  parts = drawSetup();
  suggest();
  takeUpAgain();
}

function drawSetup() {
  const options = numericFields().map(({ name, label }) => new Option(label, name));
  const parameter = h("select", { id: "sweep-parameter" }, options);
  const count = h("select", { id: "sweep-count" }, COUNTS.map((each) => new Option(`${each} values`, each)));
  const values = h("input", { id: "sweep-values", inputMode: "decimal", autocomplete: "off", "aria-describedby": "sweep-problem" });
  const problem = h("p", { class: "field-problem", id: "sweep-problem", role: "alert" });
  const plan = h("p", { class: "help" });
  const start = h("button", { type: "submit", class: "primary", id: "run-sweep" }, "Run the sweep");
  const stop = h("button", { type: "button", class: "secondary", hidden: true }, "Cancel all");
  const form = h("form", { class: "sweep-form", noValidate: true },
    h("div", { class: "sweep-fields" }, labelled("What changes", parameter), labelled("How many", count), labelled("Values", values)),
    problem, h("div", { class: "row between" }, plan, h("div", { class: "row" }, stop, start)));
  const grid = h("div", { class: "sweep-grid", id: "sweep-grid" });
  const controls = h("div", { id: "sweep-controls" });
  $("panel-sweep").append(form, controls, grid);
  grid.append(blank());
  parameter.onchange = count.onchange = suggest;
  values.oninput = drawPlan;
  form.onsubmit = (event) => {
    event.preventDefault();
    runSweep();
  };
  return { parameter, count, values, problem, plan, start, stop, grid, controls };
}

const blank = () =>
  h("div", { class: "blank" }, icon("layers"), h("p", { class: "blank-title" }, "What does this parameter do?"),
    h("p", { class: "help" }, "One click makes a clip for each value, with the same picture and seed, and shows them side by side."));

/** Values spread as on the slider of the parameter; over its lower half where the usual one is near the bottom. */
function suggest() {
  const { property } = field(parts.parameter.value);
  const scale = scaleOf(property);
  const top = scale.place(property.default) < 250 ? 500 : 1000;
  const last = Number(parts.count.value) - 1;
  parts.values.value = Array.from({ length: last + 1 }, (_, at) => scale.value((top * at) / last)).join(", ");
  drawPlan();
}

function read() {
  const chosen = field(parts.parameter.value);
  const values = parts.values.value.split(/[,;\s]+/).filter(Boolean).map(Number);
  const { minimum, maximum, type } = chosen.property;
  const outside = values.find((each) => each < minimum || each > maximum);
  let problem = "";
  if (values.some(Number.isNaN)) problem = "Write numbers, with commas between them.";
  else if (type === "integer" && !values.every(Number.isInteger)) problem = "These must be whole numbers.";
  else if (outside !== undefined) problem = `${outside} is outside ${minimum} to ${maximum}.`;
  else if (values.length < 2 || values.length > 5) problem = "Two to five values can be compared.";
  else if (new Set(values).size < values.length) problem = "Each value once.";
  return { name: chosen.name, values, problem };
}

function drawPlan() {
  const { values, problem } = read();
  parts.problem.textContent = problem;
  const price = model.price?.unit === "video" ? `, ${money(values.length * model.price.unit_price)} in all` : "";
  parts.plan.textContent = problem ? "" : `${many(values.length, "clip")}${price}. All with one seed.`;
}

// ---------------------------------------------------------------- running

async function runSweep() {
  const { name, values, problem } = read();
  if (problem) return parts.values.focus();
  const wrong = check();
  if (wrong.length) return showFormProblem("Not sent yet.", wrong.join(" "));
  if (!currentKey()) return askForKey("Making videos needs a key.");
  showFormProblem();
  setBusy(true);
  try {
    const seed = draft().seed ?? Math.floor(Math.random() * (2 ** 32 - 1));
    const input = { ...(await completeInput()), seed };
    await makeAll(name, values.map((value) => ({ ...input, [name]: value })));
  } catch (failure) {
    parts.problem.textContent = `${failure.title ?? "Something went wrong"}. ${failure.text ?? failure}`;
  } finally {
    setBusy(false);
  }
}

async function makeAll(name, inputs) {
  const { runs, tiles } = begin(name, inputs, (input, draw) => new Run(model.id, input, draw));
  for (const run of runs) {
    await run.submit(0); // in their order, so that they wait in it
    const sent = runs.filter((each) => each.id);
    if (sent.length) keep(SWEEPING, { keyId: keyId(), name, sent: sent.map((each) => each.saved) });
  }
  await followAll(runs, tiles);
}

/** A sweep of this key that ran when the page was left is taken up again. */
async function takeUpAgain() {
  const saved = kept(SWEEPING);
  if (saved?.keyId !== keyId()) return;
  const inputs = saved.sent.map(({ input }) => input);
  const { runs, tiles } = begin(saved.name, inputs, (input, draw, at) => Run.resumed(saved.sent[at], draw));
  setBusy(true);
  try {
    await followAll(runs, tiles);
  } finally {
    setBusy(false);
  }
}

/** A run and its tile for each input. */
function begin(name, inputs, runOf) {
  const tiles = inputs.map((input) => drawTile(name, input[name]));
  parts.grid.replaceChildren(...tiles.map(({ root }) => root));
  parts.controls.replaceChildren();
  const runs = inputs.map((input, at) => runOf(input, (run) => drawRun(tiles[at], run), at));
  parts.stop.onclick = () => runs.forEach((run) => run.cancel());
  return { runs, tiles };
}

async function followAll(runs, tiles) {
  await Promise.all(runs.filter((run) => !run.ended).map((run) => run.follow()));
  sessionStorage.removeItem(SWEEPING);
  field("seed")?.note(runs[0].input.seed);
  const videos = tiles.map(({ video }) => video).filter(Boolean);
  if (videos.length > 1) parts.controls.append(together(videos));
  say(`The sweep is done: ${many(videos.length, "clip")}`);
}

function setBusy(busy) {
  parts.start.disabled = busy;
  parts.stop.hidden = !busy;
}

function drawTile(name, value) {
  const words = h("p", { class: "help" }, "Waiting");
  const bar = h("progress", { max: 1, "aria-label": `Progress with ${value}` });
  const frame = h("div", { class: "tile-frame" }, words, bar);
  const caption = h("figcaption", {}, h("span", {}, labelOf(name)), h("strong", {}, String(value)));
  return { root: h("figure", { class: "tile" }, frame, caption), frame, words, bar, video: null, value };
}

function drawRun(tile, run) {
  if (run.phase === "done") return drawVideo(tile, run);
  const words = { sending: "Sending", waiting: run.position ? `${run.position} ahead` : "Waiting", running: "Making it", fetching: "Finishing" };
  tile.words.textContent = run.problem ? `${run.problem.title}. ${run.problem.text}` : run.notice || words[run.phase];
  tile.bar.hidden = run.ended;
  if (run.progress !== null) tile.bar.value = run.progress;
}

function drawVideo(tile, run) {
  const { url } = run.result[model.result];
  tile.video = h("video", { src: here(url, model.public_url), muted: true, loop: true, playsInline: true });
  tile.video.setAttribute("aria-label", `The clip with ${tile.value}`);
  tile.frame.replaceChildren(tile.video);
}

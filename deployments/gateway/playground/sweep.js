// A sweep: the same picture and seed with three to five values of one parameter, side by side and played in step.
import { $, h, here, icon, say } from "./dom.js";
import { check, completeInput, draft, field, numericFields, onForm, showFormProblem } from "./form.js";
import { askForKey, currentKey } from "./key.js";
import { model } from "./model.js";
import { Run } from "./run.js";
import { together } from "./together.js";
import { labelOf, many, money } from "./words.js";

const COUNTS = [3, 4, 5];
let parts = null;

export function startSweep() {
  if (parts) return;
  parts = drawSetup();
  onForm(drawPlan);
  suggest();
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

const labelled = (text, control) => h("label", { class: "stack tight" }, h("span", { class: "label" }, text), control);

const blank = () =>
  h("div", { class: "blank" }, icon("layers"), h("p", { class: "blank-title" }, "What does this parameter do?"),
    h("p", { class: "help" }, "One click makes a clip for each value, with the same picture and seed, and shows them side by side."));

/** Values spread over the range of the parameter; over its orders of magnitude where the default is near the bottom. */
function suggest() {
  const { minimum = 0, maximum = 100, default: initial, type } = field(parts.parameter.value).property;
  const count = Number(parts.count.value);
  const power = type === "number" && initial < minimum + (maximum - minimum) * 0.05 ? 3 : 1;
  const top = power === 3 ? maximum / 10 : maximum;
  const spread = Array.from({ length: count }, (_, at) => minimum + (top - minimum) * (at / (count - 1)) ** power);
  parts.values.value = spread.map((each) => (type === "integer" ? Math.round(each) : Number(each.toPrecision(2)))).join(", ");
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
    await runAll(name, values.map((value) => ({ ...input, [name]: value })));
    field("seed")?.note(seed);
  } catch (failure) {
    parts.problem.textContent = `${failure.title ?? "Something went wrong"}. ${failure.text ?? failure}`;
  } finally {
    setBusy(false);
  }
}

async function runAll(name, inputs) {
  const tiles = inputs.map((input) => drawTile(name, input[name]));
  parts.grid.replaceChildren(...tiles.map(({ root }) => root));
  parts.controls.replaceChildren();
  const runs = inputs.map((input, at) => new Run(model.id, input, (run) => drawRun(tiles[at], run)));
  parts.stop.onclick = () => runs.forEach((run) => run.cancel());
  for (const run of runs) await run.submit(0); // in their order, so that they wait in it
  await Promise.all(runs.filter((run) => !run.ended).map((run) => run.follow()));
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
  tile.words.textContent = run.problem ? `${run.problem.title}. ${run.problem.text}` : words[run.phase];
  tile.bar.hidden = run.ended;
  if (run.progress !== null) tile.bar.value = run.progress;
}

function drawVideo(tile, run) {
  const { url } = run.result[model.result];
  tile.video = h("video", { src: here(url, model.public_url), muted: true, loop: true, playsInline: true });
  tile.video.setAttribute("aria-label", `The clip with ${tile.value}`);
  tile.frame.replaceChildren(tile.video);
}

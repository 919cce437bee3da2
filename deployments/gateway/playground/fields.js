// The fields of a form, one for each kind of parameter. Each can be read, set, reset, and told what is wrong with it.
import { h, icon, say } from "./dom.js";
import { labelOf, number } from "./words.js";

const MAX_EXACT = Number.MAX_SAFE_INTEGER;

/** What all fields look like: a label, the name in the API, a reset, the control, a help text and room for a problem. */
export function shell(name, property, control, { reset, help = property.description, group = false } = {}) {
  const label = labelOf(name, property);
  const resetButton = reset && h("button", { type: "button", class: "icon-button", title: "Reset" }, icon("reset"));
  const problem = h("p", { class: "field-problem", id: problemOf(name), hidden: true });
  const title = h(group ? "span" : "label", { class: "label", id: `${name}-label`, htmlFor: group ? null : name }, label);
  const root = h(
    "div",
    { class: "field", id: `${name}-field`, role: group && "group", "aria-labelledby": group && `${name}-label` },
    h("div", { class: "field-head" }, title, h("code", { class: "api-name" }, name), resetButton),
    control,
    help && h("p", { class: "help", id: `${name}-help` }, help),
    problem,
  );
  if (resetButton) resetButton.onclick = reset;
  const offerReset = (to, isThere) => {
    resetButton.disabled = isThere;
    resetButton.setAttribute("aria-label", `Reset ${label} to ${to}`);
  };
  return { root, label, offerReset, mark: (text) => mark(root, text) };
}

/** Say what is wrong within an element that has a place for it, or that nothing is. Who hears the page is told, too. */
function mark(element, problem) {
  const place = element.querySelector(".field-problem");
  place.textContent = problem ?? "";
  place.hidden = !problem;
  element.classList.toggle("wrong", Boolean(problem));
  for (const input of element.querySelectorAll(`:is(input, select, textarea)[aria-describedby~="${place.id}"]`)) {
    if (problem) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  }
  if (problem) say(problem);
}

export const problemOf = (name) => `${name}-problem`;

const describedBy = (name, property) => `${property.description ? `${name}-help ` : ""}${problemOf(name)}`;

// ---------------------------------------------------------------- numbers

/** Where a value lies on a slider. A default near the bottom of a long range gets room by a cubic scale. */
export function scaleOf({ minimum = 0, maximum = 100, default: initial, type }) {
  const span = maximum - minimum;
  const power = type === "number" && Number.isFinite(initial) && (initial - minimum) / span < 0.05 ? 3 : 1;
  const digits = (value) => (type === "integer" ? Math.round(value) : Number(value.toPrecision(2)));
  return {
    value: (place) => digits(minimum + span * (place / 1000) ** power),
    place: (value) => 1000 * ((Math.min(Math.max(value, minimum), maximum) - minimum) / span) ** (1 / power),
  };
}

export function numberField(name, property, changed) {
  const { minimum, maximum, type } = property;
  const initial = property.default ?? undefined; // null says nothing, as an empty field does
  const step = type === "integer" ? 1 : "any";
  const input = h("input", { type: "number", id: name, min: minimum, max: maximum, step, inputMode: "decimal" });
  input.setAttribute("aria-describedby", describedBy(name, property));
  const hasRange = minimum !== undefined && maximum !== undefined;
  const slider = hasRange && sliderFor(name, property, input);
  const frame = shell(name, property, h("div", { class: "range-row" }, slider, input), {
    reset: () => set(initial),
    help: [property.description, rangeOf(property)].filter(Boolean).join(" "),
  });
  const { mark } = frame;
  const read = () => (input.value === "" && !input.validity.badInput ? undefined : input.valueAsNumber);
  const refresh = () => {
    slider?.follow?.();
    frame.offerReset(initial ?? "nothing", read() === initial);
  };
  input.oninput = () => {
    mark(null);
    refresh();
    changed();
  };
  const set = (value) => {
    input.value = value ?? "";
    input.oninput();
  };
  set(initial);
  return {
    name, property, root: frame.root, mark, set, value: read, isNumeric: true, label: frame.label,
    reset: () => set(initial), focus: () => input.focus(), wrong: () => wrongNumber(property, read()),
  };
}

function sliderFor(name, property, input) {
  const scale = scaleOf(property);
  const slider = h("input", { type: "range", name: `${name}-slider`, min: 0, max: 1000, step: property.type === "integer" ? "any" : 1 });
  slider.setAttribute("aria-label", `${labelOf(name, property)}, slider`);
  slider.oninput = () => {
    input.value = scale.value(slider.valueAsNumber);
    input.dispatchEvent(new Event("input"));
  };
  slider.onkeydown = (event) => nudge(event, property, input);
  slider.follow = () => {
    if (document.activeElement !== slider || slider.dataset.byKey) slider.value = scale.place(input.valueAsNumber || 0);
    slider.setAttribute("aria-valuetext", input.value);
  };
  return slider;
}

/** A whole number moves by one with an arrow key, however long its range is. */
function nudge(event, { minimum, maximum, type }, input) {
  const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
  if (type !== "integer" || !by) return;
  event.preventDefault();
  event.target.dataset.byKey = "yes";
  input.value = Math.min(maximum, Math.max(minimum, (input.valueAsNumber || 0) + by));
  input.dispatchEvent(new Event("input"));
  delete event.target.dataset.byKey;
}

function rangeOf({ minimum, maximum, default: initial }) {
  const range = minimum !== undefined && maximum !== undefined && `from ${number(minimum)} to ${number(maximum)}`;
  const words = [range, Number.isFinite(initial) && `default ${number(initial)}`].filter(Boolean).join(", ");
  return words && `${words.charAt(0).toUpperCase()}${words.slice(1)}.`;
}

function wrongNumber({ minimum, maximum, type }, value) {
  if (value === undefined) return null;
  if (Number.isNaN(value)) return "This is not a number.";
  if (type === "integer" && !Number.isInteger(value)) return "This must be a whole number.";
  if (minimum !== undefined && value < minimum) return `The least is ${number(minimum)}.`;
  if (maximum !== undefined && value > maximum) return `The most is ${number(maximum)}.`;
  return null;
}

// ---------------------------------------------------------------- the seed

/** A seed is drawn anew for each clip unless it is locked. Typing one locks it. */
export function seedField(name, property, changed) {
  const input = h("input", { type: "text", id: name, inputMode: "numeric", placeholder: "Random", autocomplete: "off" });
  input.setAttribute("aria-describedby", describedBy(name, property));
  const words = h("span");
  const lock = h("button", { type: "button", class: "small toggle", id: "seed-lock" });
  const frame = shell(name, property, h("div", { class: "seed-row" }, input, lock), {
    reset: () => set(undefined),
    help: "Locked: the same seed and input give the same clip. Unlocked: a new one each time, shown afterwards.",
  });
  const { mark } = frame;
  let locked = false;
  const offerReset = () => frame.offerReset("a random one", !locked && input.value === "");
  const setLock = (on) => {
    locked = on;
    lock.setAttribute("aria-pressed", on);
    lock.replaceChildren(icon(on ? "lock" : "unlock"), words);
    words.textContent = on ? "Locked" : "Lock";
    lock.setAttribute("aria-label", "Lock the seed");
    offerReset();
    changed();
  };
  const set = (value) => {
    input.value = value ?? "";
    mark(null);
    setLock(value !== undefined);
  };
  lock.onclick = () => {
    if (!locked && input.value === "") input.value = Math.floor(Math.random() * (2 ** 32 - 1));
    setLock(!locked);
  };
  input.oninput = () => {
    mark(null);
    setLock(input.value !== "");
  };
  setLock(false);
  return {
    name, property, root: frame.root, mark, set, label: frame.label, reset: () => set(undefined),
    focus: () => input.focus(),
    value: () => (locked && input.value !== "" ? Number(input.value) : undefined),
    wrong: () => (locked && input.value !== "" ? wrongSeed(input.value) : null),
    /** Show the seed that a clip got; a locked one stays what it is. */
    note: (used) => {
      if (locked) return;
      input.value = used;
      offerReset();
    },
  };
}

function wrongSeed(text) {
  if (!/^\d+$/.test(text.trim())) return "A seed is a whole number from 0 on.";
  return Number(text) > MAX_EXACT ? `The largest seed a browser keeps exactly is ${MAX_EXACT}.` : null;
}

// ---------------------------------------------------------------- words and choices

export function textField(name, property, changed, { required, examples = [] }) {
  const long = name === "prompt" || (property.maxLength ?? 0) > 200;
  const initial = property.default ?? "";
  const input = h(long ? "textarea" : "input", { id: name, rows: 3, maxLength: property.maxLength, required });
  input.setAttribute("aria-describedby", describedBy(name, property));
  const set = (value) => {
    input.value = value ?? "";
    input.oninput();
  };
  const choices = examples.map(({ title, prompt }) =>
    h("button", { type: "button", class: "chip", title: prompt, onclick: () => set(prompt) }, title ?? prompt),
  );
  const control = h("div", { class: "stack" }, input, choices.length > 0 && h("div", { class: "chips" }, choices));
  const frame = shell(name, property, control, { reset: initial && (() => set(initial)) });
  const { mark } = frame;
  input.oninput = () => {
    mark(null);
    if (initial) frame.offerReset(initial, input.value === initial);
    changed();
  };
  set(initial);
  const needed = name === "prompt" ? "Say in words what the video should show." : "This is needed.";
  return {
    name, property, root: frame.root, mark, set, label: frame.label, reset: () => set(initial),
    focus: () => input.focus(),
    value: () => input.value.trim() || (initial ? "" : undefined), // left out, it would be the default
    wrong: () => (required && !input.value.trim() ? needed : null),
  };
}

export function choiceField(name, property, changed, choices) {
  const initial = property.default ?? "";
  const unsaid = initial === "" && new Option("Not set", "");
  const options = choices.map((each) => new Option(String(each).replaceAll("_", " "), String(each)));
  const input = h("select", { id: name, "aria-describedby": describedBy(name, property) }, unsaid, options);
  const frame = shell(name, property, input, { reset: () => set(initial) });
  input.onchange = () => {
    frame.mark(null);
    frame.offerReset(initial === "" ? "nothing" : initial, input.value === String(initial));
    changed();
  };
  const set = (value) => {
    input.value = String(value ?? initial);
    input.onchange();
  };
  set(initial);
  return {
    name, property, root: frame.root, mark: frame.mark, set, label: frame.label,
    reset: () => set(initial), focus: () => input.focus(),
    value: () => choices.find((each) => String(each) === input.value), wrong: () => null,
  };
}

// ---------------------------------------------------------------- the size

/** A named size, drawn as it looks, or width and height. */
export function sizeField(name, property, changed, names, own) {
  const radios = [...names, "custom"].map((each) => sizeChoice(name, each));
  const sides = ["width", "height"].map((side) => sideInput(name, side, own.properties[side]));
  const custom = h("div", { class: "sides", hidden: true }, sides.map(({ root }) => root));
  const control = h("div", { class: "stack" }, h("div", { class: "sizes" }, radios.map(({ root }) => root)), custom);
  const initial = property.default ?? names[0];
  const frame = shell(name, property, control, { reset: () => set(initial), group: true });
  const { mark } = frame;
  const chosen = () => radios.find(({ input }) => input.checked).value;
  const refresh = () => {
    custom.hidden = chosen() !== "custom";
    frame.offerReset(initial.replaceAll?.("_", " ") ?? "the usual one", chosen() === initial);
    mark(null);
    changed();
  };
  const set = (value) => {
    const isOwn = typeof value === "object" && value !== null;
    radios.find((each) => each.value === (isOwn ? "custom" : value ?? initial)).input.checked = true;
    if (isOwn) sides.forEach(({ input, side }) => (input.value = value[side]));
    refresh();
  };
  for (const { input } of radios) input.onchange = refresh;
  for (const { input } of sides) input.oninput = refresh;
  set(initial);
  const ownSize = () => Object.fromEntries(sides.map(({ input, side }) => [side, input.valueAsNumber]));
  return {
    name, property, root: frame.root, mark, set, label: frame.label, reset: () => set(initial),
    focus: () => radios.find(({ input }) => input.checked).input.focus(),
    value: () => (chosen() === "custom" ? ownSize() : chosen()),
    wrong: () => (chosen() === "custom" ? wrongSides(sides) : null),
  };
}

function wrongSides(sides) {
  for (const { input, side, property } of sides) {
    const problem = wrongNumber({ ...property, minimum: 1 }, input.value === "" ? NaN : input.valueAsNumber);
    if (problem) return `The ${side}: ${problem}`;
  }
  return null;
}

const SHAPES = { square: [18, 18], portrait_4_3: [15, 20], portrait_16_9: [12, 21], landscape_4_3: [20, 15] };

function sizeChoice(name, value) {
  const input = h("input", { type: "radio", name, value, id: value === "landscape_16_9" ? name : `${name}-${value}` });
  const [width, height] = SHAPES[value] ?? (value === "square_hd" ? [18, 18] : [21, 12]);
  const shape = h("span", { class: value === "custom" ? "shape own" : "shape", "aria-hidden": "true" });
  Object.assign(shape.style, { width: `${width}px`, height: `${height}px` });
  const words = value === "custom" ? "Custom" : sizeWords(value);
  return { value, input, root: h("label", { class: "size" }, input, shape, h("span", {}, words)) };
}

function sizeWords(value) {
  const [kind, ...ratio] = value.split("_");
  const name = kind.charAt(0).toUpperCase() + kind.slice(1);
  return ratio[0] === "hd" ? `${name} HD` : [name, ratio.join(":")].filter(Boolean).join(" ");
}

function sideInput(name, side, property) {
  const id = `${name}-${side}`;
  const input = h("input", { type: "number", id, min: 1, max: property.maximum, value: property.default });
  input.setAttribute("aria-describedby", problemOf(name));
  const title = side === "width" ? "Width" : "Height";
  return { side, property, input, root: h("label", { class: "side", htmlFor: id }, title, input) };
}

// The form of an endpoint, drawn from its schema: what a request says, checked before it is sent, and kept over a reload.
import { $, h, keep, kept } from "./dom.js";
import { choiceField, numberField, seedField, sizeField, textField } from "./fields.js";
import { archiveField, maskField } from "./files.js";
import { model } from "./model.js";
import { pictureField } from "./picture.js";
import { isLong } from "./words.js";

const DRAFT = `draft of ${model.id}`;
const ORDER = ["image_url", "prompt", "mask_image_url", "control_maps_data_url", "video_size", "motion_bucket_id", "cond_aug", "steps", "fps"];
const listeners = [];
let fields = [];
let ready = false;
let pictureSeen = null;

export const onForm = (listener) => listeners.push(listener);
export const field = (name) => fields.find((each) => each.name === name);
export const numericFields = () => fields.filter((each) => each.isNumeric);

/** Draw the form. */
export function startForm() {
  const entries = Object.entries(model.schema.properties).sort(([a], [b]) => rank(a) - rank(b));
  fields = entries.map(([name, property]) => fieldOf(name, property));
  const [inputs, knobs] = [fields.filter((each) => !isKnob(each)), fields.filter(isKnob)];
  $("fields").append(...inputs.map(({ root }) => root));
  $("knobs").append(...knobs.map(({ root }) => root));
  $("reset").onclick = () => fields.filter(isKnob).forEach((each) => each.reset());
  ready = true;
  restore();
  changed({ picture: true });
}

const isKnob = ({ name, isNumeric }) => isNumeric || name === "seed";
const rank = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : name === "seed" ? 99 : 50);

function fieldOf(name, property) {
  const required = model.schema.required?.includes(name) ?? false;
  const choices = property.enum ?? property.anyOf?.find((each) => each.enum)?.enum;
  const own = property.anyOf?.find((each) => each.$ref);
  if (name === "image_url") return pictureField(name, property, changed, { required });
  if (name === "mask_image_url") return maskField(name, property, changed, () => field("image_url")?.source() ?? null);
  if (name.endsWith("_data_url")) return archiveField(name, property, changed);
  if (name === "seed") return seedField(name, property, changed);
  if (choices && own) return sizeField(name, property, changed, choices, model.schema.$defs[own.$ref.split("/").at(-1)]);
  if (choices) return choiceField(name, property, changed, choices);
  if (property.type === "boolean") return choiceField(name, property, changed, [true, false]);
  if (["integer", "number"].includes(property.type)) return numberField(name, property, changed);
  return textField(name, property, changed, { required, examples: name === "prompt" ? examplePrompts(property) : [] });
}

function examplePrompts(property) {
  const given = model.examples.filter((each) => each.prompt);
  return given.length ? given : (property.examples ?? []).map((prompt) => ({ prompt }));
}

// ---------------------------------------------------------------- reading and writing

/** The input as the request would say it now. A file that is not uploaded yet has a name in place of an address. */
export function draft(pendingName = () => undefined) {
  const said = fields.map((each) => [each.name, each.value() ?? (each.pending?.() ? pendingName(each) : undefined)]);
  return Object.fromEntries(said.filter(([, value]) => value !== undefined));
}

/** The input, with everything uploaded. Raises what prevents it. */
export async function completeInput() {
  await Promise.all(fields.map((each) => each.resolve?.()));
  return draft();
}

export function fill(input) {
  for (const each of fields) {
    if (each.name === "mask_image_url") continue; // after its picture, whose change removes a mask
    each.set(input[each.name] ?? (each.name === "seed" ? undefined : each.property.default) ?? undefined);
  }
  pictureSeen = field("image_url")?.source() ?? null;
  field("mask_image_url")?.set(input.mask_image_url ?? undefined);
}

/** What is wrong before anything is sent; the first wrong field gets the focus. */
export function check() {
  const wrong = fields.map((each) => [each, each.wrong()]).filter(([, text]) => text);
  fields.forEach((each) => each.mark(null));
  return showWrong(wrong);
}

/** Show what the service says of fields. Answers what belongs to none of them. */
export function blame(texts) {
  const known = fields.filter((each) => texts[each.name]);
  showWrong(known.map((each) => [each, texts[each.name]]));
  return Object.entries(texts).filter(([name]) => !field(name));
}

function showWrong(wrong) {
  for (const [each, text] of wrong) each.mark(text);
  wrong[0]?.[0].focus();
  wrong[0]?.[0].root.scrollIntoView({ block: "nearest" });
  return wrong.map(([each, text]) => `${each.label}: ${text}`);
}

function changed({ picture = false } = {}) {
  if (!ready) return;
  if (picture) followPicture();
  keepDraft();
  for (const listener of listeners) listener();
}

function followPicture() {
  const now = field("image_url")?.source() ?? null;
  const isSame = now === pictureSeen;
  pictureSeen = now;
  field("mask_image_url")?.follow(isSame);
}

/** Keep what is entered, and the names of the files that a reload loses: they are not uploaded, or written out. */
function keepDraft() {
  const said = Object.entries(draft((each) => ({ lost: each.pending().name })));
  keep(DRAFT, Object.fromEntries(said.map(([name, value]) => [name, isLong(value) ? { lost: "A file" } : value])));
}

function restore() {
  const entries = Object.entries(kept(DRAFT) ?? {});
  if (!entries.length) return;
  fill(Object.fromEntries(entries.filter(([, value]) => !value.lost)));
  for (const [name, { lost }] of entries) if (lost) field(name)?.mark(`Choose it again: ${lost} was not uploaded when the page was left.`);
}

/** Tell what kept a form from being sent, above its button. */
export function showFormProblem(title, text) {
  $("form-problem").hidden = !title;
  $("form-problem").replaceChildren(...(title ? [h("strong", {}, title), " ", text] : []));
}

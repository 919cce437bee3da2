// The other files a form may want: a mask, painted or chosen, and an archive of depth maps.
import { h, icon, say } from "./dom.js";
import { shell } from "./fields.js";
import { MOST_BYTES, uploadLine, watch } from "./picture.js";
import { Source } from "./source.js";
import { bytes } from "./words.js";

/** A mask belongs to a picture, so it goes when another picture comes. */
export function maskField(name, property, changed, picture) {
  let source = null;
  let strokes = [];
  const image = h("img", { alt: "The mask: black moves, white stays", class: "mask-picture" });
  const words = h("p", { class: "grow" });
  const paint = h("button", { type: "button", class: "secondary", id: "paint-mask" }, icon("brush"), h("span", {}, "Paint a mask"));
  const pick = h("button", { type: "button", class: "secondary" }, "Choose a file");
  const remove = h("button", { type: "button", class: "small" }, "Remove");
  const file = h("input", { type: "file", id: name, accept: "image/*", class: "off-screen", tabIndex: -1, "aria-label": "Mask file" });
  const line = uploadLine();
  const filled = h("div", { class: "row mask-row", hidden: true }, image, h("div", { class: "grow" }, words, line.root), remove);
  const frame = shell(name, property, h("div", { class: "stack" }, file, filled, h("div", { class: "row" }, paint, pick)), { group: true });
  const mark = markGroup(frame);

  const take = (next, told = "") => {
    source?.release();
    source = next;
    mark(null);
    filled.hidden = !source;
    paint.lastChild.textContent = source ? "Change the mask" : "Paint a mask";
    if (source) {
      image.src = source.shown;
      words.textContent = told;
      watch(source, line, () => changed());
    } else strokes = [];
    changed();
  };
  paint.onclick = async () => {
    const { openMask } = await import("./mask.js");
    openMask(picture().shown, strokes, (painted) => {
      strokes = painted.strokes;
      const share = Math.round(painted.moving * 100);
      take(new Source({ file: painted.file }), `${share} % of the picture moves, the rest stays.`);
      say(`Mask painted: ${share} percent moves`);
    });
  };
  pick.onclick = () => file.click();
  file.onchange = () => {
    const [chosen] = file.files;
    file.value = "";
    if (!chosen) return;
    if (chosen.size > MOST_BYTES) return mark("A mask has at most 20 MB.");
    strokes = [];
    take(new Source({ file: chosen }), chosen.name);
  };
  remove.onclick = () => {
    take(null);
    paint.focus();
  };
  return {
    ...common(name, property, frame, mark, () => source, line),
    set: (url) => take(url ? new Source({ url }) : null, "Mask of an earlier request"),
    reset: () => take(null),
    focus: () => paint.focus(),
    /** The picture has changed: a mask of another one fits no more. */
    follow: (isSame) => {
      paint.disabled = !picture()?.width;
      if (source && !isSame) take(null);
    },
  };
}

export function archiveField(name, property, changed) {
  let source = null;
  const words = h("p", { class: "grow file-name" });
  const pick = h("button", { type: "button", class: "secondary" }, icon("layers"), h("span", {}, "Choose an archive"));
  const remove = h("button", { type: "button", class: "small" }, "Remove");
  const accept = ".zip,.tar,.tgz,.gz,application/zip,application/x-tar";
  const file = h("input", { type: "file", id: name, accept, class: "off-screen", tabIndex: -1, "aria-label": "Archive of depth maps" });
  const line = uploadLine();
  const filled = h("div", { class: "row file-row", hidden: true }, h("div", { class: "grow" }, words, line.root), remove);
  const frame = shell(name, property, h("div", { class: "stack" }, file, filled, h("div", { class: "row" }, pick)), { group: true });
  const mark = markGroup(frame);
  const take = (next) => {
    source = next;
    mark(null);
    filled.hidden = !source;
    if (source) {
      words.textContent = source.file ? `${source.file.name}, ${bytes(source.file.size)}` : source.url;
      watch(source, line, () => changed());
    }
    changed();
  };
  pick.onclick = () => file.click();
  file.onchange = () => {
    if (file.files[0]) take(new Source({ file: file.files[0] }));
    file.value = "";
  };
  remove.onclick = () => {
    take(null);
    pick.focus();
  };
  return {
    ...common(name, property, frame, mark, () => source, line),
    set: (url) => take(url ? new Source({ url }) : null),
    reset: () => take(null),
    focus: () => pick.focus(),
  };
}

function common(name, property, frame, mark, source, line) {
  return {
    name, property, root: frame.root, mark, label: frame.label,
    value: () => source()?.url ?? undefined,
    pending: () => (source() && !source().url ? source() : null),
    resolve: () => source()?.address(line.follow),
    wrong: () => null,
  };
}

function markGroup(frame) {
  return (text) => {
    frame.problem.textContent = text ?? "";
    frame.problem.hidden = !text;
    frame.root.classList.toggle("wrong", Boolean(text));
  };
}

// The other files a form may want: a mask, painted or chosen, and an archive of depth maps.
import { h, icon, say } from "./dom.js";
import { problemOf, shell } from "./fields.js";
import { catchDrops, holder, uploadLine, wrongPicture } from "./picture.js";
import { Source } from "./source.js";
import { bytes } from "./words.js";

/** A mask belongs to a picture, so it goes when another picture comes. */
export function maskField(name, property, changed, picture) {
  let painting = { strokes: [], words: "" };
  const image = h("img", { alt: "The mask: black moves, white stays", class: "mask-picture" });
  const words = h("p", { class: "grow" });
  const paint = h("button", { type: "button", class: "secondary", id: "paint-mask", "aria-describedby": problemOf(name) }, icon("brush"), h("span", {}, "Paint a mask"));
  const parts = drawParts(name, { accept: "image/*", label: "Mask file", pick: [icon("picture"), h("span", {}, "Choose a file")], before: paint }, image, words);
  const frame = shell(name, property, parts.root, { group: true });
  const held = holder(frame, parts.line, changed, (source) => {
    parts.filled.hidden = !source;
    paint.lastChild.textContent = source ? "Change the mask" : "Paint a mask";
    if (source) image.src = source.shown;
    words.textContent = source ? painting.words || source.name : "";
    changed();
  });
  const take = (source, { strokes = [], words = "" } = {}) => {
    painting = { strokes, words };
    held.take(source);
  };
  paint.onclick = async () => {
    const { openMask } = await import("./mask.js");
    openMask(picture().shown, painting.strokes, ({ file, strokes, moving }) => {
      const share = Math.round(moving * 100);
      take(new Source({ file }), { strokes, words: `${share} % of the picture moves, the rest stays.` });
      say(`Mask painted: ${share} percent moves`);
    });
  };
  wire(parts, frame, (file) => {
    const problem = wrongPicture(file);
    if (problem) frame.mark(problem);
    else take(new Source({ file }));
  });
  parts.remove.onclick = () => {
    take(null);
    paint.focus();
  };
  return {
    name, property, root: frame.root, mark: frame.mark, label: frame.label, ...held,
    set: (url) => take(url ? new Source({ url }) : null),
    reset: () => take(null),
    focus: () => paint.focus(),
    wrong: () => null,
    /** The picture has changed: a mask of another one fits no more. */
    follow: (isSame) => {
      paint.disabled = !picture()?.width;
      if (held.source() && !isSame) take(null);
    },
  };
}

export function archiveField(name, property, changed) {
  const words = h("p", { class: "grow file-name" });
  const accept = ".zip,.tar,.tgz,.gz,application/zip,application/x-tar";
  const parts = drawParts(name, { accept, label: "Archive of depth maps", pick: [icon("layers"), h("span", {}, "Choose an archive")] }, words);
  const frame = shell(name, property, parts.root, { group: true });
  const held = holder(frame, parts.line, changed, (source) => {
    parts.filled.hidden = !source;
    words.textContent = source?.file ? `${source.name}, ${bytes(source.file.size)}` : source?.name ?? "";
    changed();
  });
  wire(parts, frame, (file) => held.take(new Source({ file })));
  parts.remove.onclick = () => {
    held.take(null);
    parts.pick.focus();
  };
  return {
    name, property, root: frame.root, mark: frame.mark, label: frame.label, ...held,
    focus: () => parts.pick.focus(),
    wrong: () => null,
  };
}

/** Buttons to choose a file with, and a row that tells which one is chosen. */
function drawParts(name, { accept, label, pick: picks, before = null }, ...told) {
  const file = h("input", { type: "file", id: name, accept, class: "off-screen", tabIndex: -1, "aria-label": label });
  const pick = h("button", { type: "button", class: "secondary", "aria-describedby": problemOf(name) }, picks);
  const remove = h("button", { type: "button", class: "small" }, "Remove");
  const line = uploadLine();
  const words = told.pop();
  const filled = h("div", { class: "row file-row", hidden: true }, told, h("div", { class: "grow" }, words, line.root), remove);
  const root = h("div", { class: "stack" }, file, filled, h("div", { class: "row" }, before, pick));
  return { root, file, pick, remove, line, filled };
}

/** The ways in: a file is chosen, or falls on the field. */
function wire({ file, pick }, { root }, takeFile) {
  pick.onclick = () => file.click();
  file.onchange = () => {
    if (file.files[0]) takeFile(file.files[0]);
    file.value = "";
  };
  catchDrops(root, takeFile);
}

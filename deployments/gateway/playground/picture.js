// The picture to animate: by drop, paste, file, address or example; shown as the service will crop it.
import { $, h, icon, say } from "./dom.js";
import { problemOf, shell } from "./fields.js";
import { currentKey } from "./key.js";
import { model, nearestSize } from "./model.js";
import { fileName, Source } from "./source.js";

const ACCEPT = "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/tiff,image/avif";
const MOST_BYTES = 20 * 1024 * 1024;

export function pictureField(name, property, changed, { required }) {
  const parts = drawParts(name);
  const frame = shell(name, property, parts.root, { help: "", group: true });
  const held = holder(frame, parts.upload, changed, (source) => {
    parts.empty.hidden = source !== null;
    parts.filled.hidden = source === null;
    if (source) parts.image.src = source.shown;
    else parts.image.removeAttribute("src");
    parts.note.textContent = "";
    parts.choose.forEach((button) => button.mark(source?.example));
    changed({ picture: true });
  });
  const { take, source: current } = held;
  wire(parts, frame, held);
  parts.image.onload = () => {
    const source = current();
    if (!source) return;
    const { naturalWidth: width, naturalHeight: height } = parts.image;
    Object.assign(source, { width, height });
    parts.image.hidden = false;
    const [w, h] = nearestSize(width, height);
    parts.image.style.aspectRatio = `${w} / ${h}`;
    parts.note.textContent = cropWords(width, height, w, h);
    changed({ picture: true });
  };
  parts.image.onerror = () => {
    if (!current()) return;
    parts.image.hidden = true;
    parts.note.textContent = "This browser cannot show the picture. The service may still read it.";
  };
  return {
    name, property, root: frame.root, mark: frame.mark, label: frame.label, ...held,
    focus: () => (current() ? parts.replace : parts.pick).focus(),
    wrong: () => (required && !current() ? "Choose a picture first, or try one of the examples." : null),
  };
}

/** What a field holds: one source at a time, which is uploaded as soon as that can be, and let go when another comes. */
export function holder(frame, line, changed, show) {
  let source = null;
  let choices = 0;
  const take = (next) => {
    choices++;
    source?.release();
    source = next;
    frame.mark(null);
    if (source) watch(source, line, () => changed());
    show(source);
  };
  return {
    take,
    /** Take what is still to come, unless another choice is made before. */
    takeLater: async (coming) => {
      const mine = ++choices;
      const next = await coming.catch(() => null);
      if (mine !== choices) return;
      if (next) take(next);
      else frame.mark("It could not be loaded. Check the connection.");
    },
    source: () => source,
    set: (url) => take(url ? new Source({ url }) : null),
    reset: () => take(null),
    value: () => source?.url ?? undefined,
    pending: () => (source && !source.url ? source : null),
    resolve: () => source?.address(line.follow),
  };
}

function cropWords(width, height, w, h) {
  const share = Math.min(width / height / (w / h), w / h / (width / height));
  const cropped = share > 0.99 ? "Shown whole" : `The middle is taken, ${Math.round(share * 100)} % of it`;
  return `${width} × ${height}. ${cropped}; the clip is ${w} × ${h}.`;
}

function drawParts(name) {
  const file = h("input", { type: "file", id: name, accept: ACCEPT, class: "off-screen", tabIndex: -1 });
  file.setAttribute("aria-label", "Picture file");
  const pick = h("button", { type: "button", class: "secondary", "aria-describedby": problemOf(name) }, "Choose a file");
  const byUrl = h("button", { type: "button", class: "secondary", "aria-expanded": "false" }, "Use an address");
  const url = h("input", { type: "url", id: `${name}-url`, placeholder: "https://…", "aria-label": "Address of a picture" });
  const use = h("button", { type: "button", class: "secondary" }, "Use it");
  const urlRow = h("div", { class: "url-row", hidden: true }, url, use);
  const lead = h("p", { class: "drop-lead" }, h("strong", {}, "Drop a picture here"), h("span", {}, " or paste it"));
  const empty = h("div", { class: "drop" }, icon("picture"), lead, h("div", { class: "row" }, pick, byUrl), urlRow);
  const image = h("img", { alt: "The picture, as the service crops it", class: "picture" });
  const replace = h("button", { type: "button", class: "small", "aria-describedby": problemOf(name) }, "Replace");
  const remove = h("button", { type: "button", class: "small" }, "Remove");
  const note = h("p", { class: "help", id: `${name}-note` });
  const upload = uploadLine();
  const filled = h(
    "div",
    { class: "chosen", hidden: true },
    h("div", { class: "picture-frame" }, image),
    note,
    h("div", { class: "row between" }, h("div", { class: "grow" }, upload.root), h("div", { class: "row" }, replace, remove)),
  );
  const choose = model.examples.filter((each) => each.url).map(exampleButton);
  const tries = choose.length > 0 && h("div", { class: "examples" }, h("span", { class: "help" }, "Or try"), choose.map(({ root }) => root));
  const root = h("div", { class: "stack" }, file, empty, filled, tries);
  return { root, file, pick, byUrl, url, use, urlRow, empty, image, filled, replace, remove, note, upload, choose };
}

function exampleButton(example) {
  const image = h("img", { src: example.url, alt: "", width: 96, height: 54 });
  const root = h("button", { type: "button", class: "example", title: example.title }, image);
  root.setAttribute("aria-label", `Example: ${example.title}`);
  return { root, example, mark: (chosen) => root.setAttribute("aria-pressed", chosen === example.name) };
}

// ---------------------------------------------------------------- ways in

function wire(parts, { root, mark }, { take, takeLater }) {
  const takeFile = (file) => {
    const problem = wrongPicture(file);
    if (problem) return mark(problem);
    take(new Source({ file }));
    say("Picture chosen");
  };
  const takeUrl = (address) => {
    if (!isAddress(address)) return mark("An address begins with https:// or http://.");
    take(new Source({ url: address.trim() }));
  };
  const { file, pick, replace, byUrl, url, use, urlRow, remove } = parts;
  pick.onclick = replace.onclick = () => file.click();
  file.onchange = () => {
    if (file.files[0]) takeFile(file.files[0]);
    file.value = "";
  };
  byUrl.onclick = () => {
    urlRow.hidden = !urlRow.hidden;
    byUrl.setAttribute("aria-expanded", !urlRow.hidden);
    if (!urlRow.hidden) url.focus();
  };
  use.onclick = () => takeUrl(url.value);
  url.onkeydown = (event) => {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    takeUrl(url.value);
  };
  remove.onclick = () => {
    take(null);
    pick.focus();
  };
  for (const { root, example } of parts.choose) root.onclick = () => takeLater(load(example));
  catchDrops(root, takeFile, takeUrl);
  watchPage(takeFile, takeUrl);
}

/** An example is a file of this page, so it goes the same way as one of the person's own. */
async function load({ name, url }) {
  const reply = await fetch(url);
  if (!reply.ok) throw new Error(reply.statusText);
  const blob = await reply.blob();
  return new Source({ file: new File([blob], fileName(url), { type: blob.type }), example: name });
}

export function wrongPicture(file) {
  if (file.type && !file.type.startsWith("image/")) return `“${file.name}” is not a picture.`;
  return file.size > MOST_BYTES ? "A picture has at most 20 MB." : null;
}

const isAddress = (text) => /^https?:\/\/[^\s/]+/i.test(text.trim());

const brings = (event, ...types) => types.some((type) => event.dataTransfer.types.includes(type));

/** Let a file fall on a field, or an address, where one is taken. */
export function catchDrops(root, takeFile, takeUrl = null) {
  const isOurs = (event) => brings(event, "Files", ...(takeUrl ? ["text/uri-list"] : []));
  const over = (on) => root.classList.toggle("dragging", on);
  root.addEventListener("dragover", (event) => {
    if (!isOurs(event)) return;
    event.preventDefault();
    over(true);
  });
  root.addEventListener("dragleave", (event) => !root.contains(event.relatedTarget) && over(false));
  root.addEventListener("drop", (event) => {
    over(false);
    if (!isOurs(event)) return;
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) takeFile(file);
    else takeUrl?.(event.dataTransfer.getData("text/uri-list").split("\n")[0]);
  });
}

const isInUse = () => !$("playground").hidden && !document.querySelector("dialog[open]");

/** A file that falls beside the fields does not open in place of the page; what is pasted is the picture. */
function watchPage(takeFile, takeUrl) {
  for (const kind of ["dragover", "drop"]) {
    document.addEventListener(kind, (event) => isInUse() && brings(event, "Files") && event.preventDefault());
  }
  document.addEventListener("paste", (event) => {
    if (!isInUse()) return;
    const [file] = event.clipboardData.files;
    const inField = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
    const text = event.clipboardData.getData("text");
    if (file) takeFile(file);
    else if (!inField && isAddress(text)) takeUrl(text);
  });
}

// ---------------------------------------------------------------- uploading

/** A line that tells how far an upload is, and lets a failed one be tried again. */
export function uploadLine() {
  const words = h("span");
  const bar = h("progress", { max: 1, "aria-label": "Upload" });
  const again = h("button", { type: "button", class: "small" }, "Try again");
  const root = h("div", { class: "upload help", hidden: true }, words, bar, again);
  const tell = (text, { share = null, failed = false } = {}) => {
    root.hidden = !text;
    words.textContent = text;
    bar.hidden = share === null;
    if (share !== null) bar.value = share;
    again.hidden = !failed;
    root.classList.toggle("bad", failed);
    if (failed) say(text);
  };
  return { root, again, tell, follow: (share) => tell("Uploading", { share }) };
}

/** Upload what a person has chosen, so that it is there when it is needed. Without a key it waits. */
function watch(source, line, changed) {
  const tell = () => {
    if (source.problem) line.tell(`Not uploaded: ${source.problem.title.toLowerCase()}.`, { failed: true });
    else line.tell(!source.file ? "" : source.url ? "Uploaded" : "It is uploaded when you run it");
    changed();
  };
  source.onChange = tell;
  const start = () => source.address(line.follow).catch(() => {});
  line.again.onclick = start;
  tell();
  if (currentKey() && source.file) start();
}

// Painting a mask on the picture: black moves, white stays. What is painted is kept as strokes, so that it can be undone.
import { h, say } from "./dom.js";

const LONGEST_SIDE = 1024;
const BRUSHES = { min: 2, max: 40, value: 12 }; // percent of the shorter side
const LEAST_BRUSH = 4;
const NO_LENGTH = 0.01; // pixels: a line that has none at all is not drawn, and a dot would be lost
const COLOUR = "#4c6fff";
const VEIL = "rgb(12 16 28 / 0.6)";

/** Open the editor over the page. `done` gets the mask as a PNG, its strokes, and the share that moves. */
export function openMask(pictureUrl, strokes, done) {
  const picture = new Image();
  picture.onload = () => new Editor(picture, strokes, done).open();
  picture.src = pictureUrl;
}

class Editor {
  constructor(picture, strokes, done) {
    const scale = Math.min(1, LONGEST_SIDE / Math.max(picture.naturalWidth, picture.naturalHeight));
    this.width = Math.max(1, Math.round(picture.naturalWidth * scale));
    this.height = Math.max(1, Math.round(picture.naturalHeight * scale));
    Object.assign(this, { picture, strokes: [...strokes], done, erasing: false, stroke: null });
    this.cursor = { x: this.width / 2, y: this.height / 2, shown: false };
    this.layer = Object.assign(document.createElement("canvas"), { width: this.width, height: this.height });
    this.layer.getContext("2d", { willReadFrequently: true }); // what moves is counted after each stroke
    this.shown = this.#canvas();
    this.#drawDialog();
    this.#listen();
    this.#replay();
  }

  open() {
    document.body.append(this.dialog);
    this.dialog.showModal();
    this.shown.focus();
  }

  get brush() {
    return Math.max(LEAST_BRUSH, (this.size.valueAsNumber / 100) * Math.min(this.width, this.height));
  }

  // -------------------------------------------------------------- the dialog

  #canvas() {
    const canvas = h("canvas", { class: "mask-canvas", width: this.width, height: this.height, tabIndex: 0, role: "application" });
    canvas.setAttribute("aria-label", "Mask. Arrow keys move the brush, Shift moves it further, Space paints, E changes between paint and erase.");
    return canvas;
  }

  #drawDialog() {
    const button = (text, act, id) => h("button", { type: "button", class: "secondary", onclick: act, id }, text);
    this.paint = button("Paint", () => this.#use(false), "mask-paint");
    this.erase = button("Erase", () => this.#use(true), "mask-erase");
    this.undo = button("Undo", () => this.#undo(), "mask-undo");
    this.size = h("input", { type: "range", id: "mask-brush", ...BRUSHES });
    this.share = h("p", { class: "grow", role: "status", id: "mask-share" });
    this.picture.className = "mask-under";
    this.picture.alt = "";
    const frame = h("div", { class: "mask-frame" }, this.picture, this.shown);
    frame.style.aspectRatio = `${this.width} / ${this.height}`;
    frame.style.setProperty("--ratio", this.width / this.height);
    const tools = h("div", { class: "row mask-tools" }, h("div", { class: "row joined", role: "group", "aria-label": "Tool" }, this.paint, this.erase),
      h("label", { class: "row brush" }, "Brush", this.size), this.undo,
      button("Fill", () => this.#all("fill"), "mask-fill"), button("Clear", () => this.#all("clear"), "mask-clear"));
    this.use = h("button", { type: "button", class: "primary", id: "mask-use", onclick: () => this.#finish() }, "Use this mask");
    const bottom = h("div", { class: "row end" }, this.share, button("Cancel", () => this.#close()), this.use);
    const help = h("p", { class: "help", id: "mask-help" }, "Paint over what should move. The rest stays as in the picture. With keys: arrows move the brush, Space paints, E erases.");
    this.dialog = h("dialog", { class: "mask-dialog", "aria-labelledby": "mask-title" },
      h("h2", { id: "mask-title" }, "What should move?"), help, frame, this.#regions(), tools, bottom);
    this.#use(false);
  }

  /** A rectangle by numbers, for whoever neither points nor steers. */
  #regions() {
    const names = ["Left", "Top", "Right", "Bottom"];
    const inputs = names.map((name, at) => h("input", { type: "number", min: 0, max: 100, value: [25, 25, 75, 75][at], id: `mask-${name.toLowerCase()}` }));
    const labels = names.map((name, at) => h("label", { class: "side", htmlFor: `mask-${name.toLowerCase()}` }, `${name} %`, inputs[at]));
    const add = h("button", { type: "button", class: "secondary", id: "mask-rectangle" }, "Add");
    add.onclick = () => {
      const [left, top, right, bottom] = inputs.map((each) => Math.min(100, Math.max(0, each.valueAsNumber || 0)) / 100);
      this.#push({ kind: "rectangle", erase: this.erasing, left, top, right, bottom });
    };
    return h("details", { class: "regions" }, h("summary", {}, "Add a rectangle by numbers"), h("div", { class: "row" }, labels, add));
  }

  #use(erasing) {
    this.erasing = erasing;
    this.paint.setAttribute("aria-pressed", !erasing);
    this.erase.setAttribute("aria-pressed", erasing);
  }

  // -------------------------------------------------------------- painting

  #listen() {
    const { shown } = this;
    shown.onpointerdown = (event) => {
      if (this.stroke || event.button !== 0) return; // one finger paints at a time
      this.pointer = event.pointerId;
      shown.setPointerCapture(event.pointerId);
      this.cursor.shown = false;
      this.#begin(this.#at(event));
    };
    shown.onpointermove = (event) => {
      if (!this.#paints(event)) return;
      for (const each of event.getCoalescedEvents?.() ?? [event]) this.#extend(this.#at(each));
      this.#show();
    };
    shown.onpointerup = shown.onpointercancel = (event) => this.#paints(event) && this.#end();
    shown.onkeydown = (event) => this.#key(event);
    shown.onblur = () => this.#moveCursor(0, 0, false);
    this.dialog.onclose = () => this.dialog.remove();
  }

  #at(event) {
    const box = this.shown.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * this.width, ((event.clientY - box.top) / box.height) * this.height];
  }

  #begin(point) {
    this.stroke = { kind: "stroke", erase: this.erasing, size: this.brush, points: [point] };
    this.#draw(this.stroke);
    this.#show();
  }

  #extend(point) {
    const last = this.stroke.points.at(-1);
    this.stroke.points.push(point);
    this.#draw({ ...this.stroke, points: [last, point] });
  }

  #paints(event) {
    return this.stroke !== null && event.pointerId === this.pointer;
  }

  #end() {
    this.strokes.push(this.stroke);
    this.stroke = null;
    this.#changed();
  }

  #push(stroke) {
    this.strokes.push(stroke);
    this.#draw(stroke);
    this.#changed();
  }

  #all(kind) {
    this.#push({ kind });
    say(kind === "fill" ? "Everything moves" : "Nothing moves");
  }

  #undo() {
    this.strokes.pop();
    this.#replay();
  }

  #key(event) {
    const step = event.shiftKey ? this.brush * 2 : this.brush / 2;
    const [dx, dy] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key] ?? [];
    if (dx !== undefined) this.#moveCursor(dx, dy, true);
    else if (event.key === " ") this.#push({ kind: "stroke", erase: this.erasing, size: this.brush, points: [[this.cursor.x, this.cursor.y]] });
    else if (event.key.toLowerCase() === "e") this.#use(!this.erasing);
    else if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) this.#undo();
    else return;
    event.preventDefault();
  }

  #moveCursor(dx, dy, shown) {
    const within = (value, most) => Math.min(most, Math.max(0, value));
    this.cursor = { x: within(this.cursor.x + dx, this.width), y: within(this.cursor.y + dy, this.height), shown };
    this.#show();
  }

  // -------------------------------------------------------------- drawing

  #replay() {
    this.layer.getContext("2d").clearRect(0, 0, this.width, this.height);
    for (const stroke of this.strokes) this.#draw(stroke);
    this.#changed();
  }

  /** Paint a stroke on the layer, on which what moves is opaque and what stays is nothing. */
  #draw({ kind, erase, size, points, left, top, right, bottom }) {
    const context = this.layer.getContext("2d");
    context.globalCompositeOperation = erase || kind === "clear" ? "destination-out" : "source-over";
    context.fillStyle = context.strokeStyle = COLOUR;
    if (kind === "fill" || kind === "clear") return context.fillRect(0, 0, this.width, this.height);
    if (kind === "rectangle") return context.fillRect(left * this.width, top * this.height, (right - left) * this.width, (bottom - top) * this.height);
    Object.assign(context, { lineWidth: size, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.moveTo(...points[0]);
    for (const [x, y] of points) context.lineTo(x + NO_LENGTH, y);
    context.stroke();
  }

  #changed() {
    this.undo.disabled = this.strokes.length === 0;
    const moving = this.#moving();
    this.share.textContent = moving ? `${Math.max(1, Math.round(moving * 100))} % of the picture moves` : "Nothing moves yet";
    this.use.disabled = moving === 0;
    this.#show();
  }

  #moving() {
    const { data } = this.layer.getContext("2d").getImageData(0, 0, this.width, this.height);
    let painted = 0;
    for (let at = 3; at < data.length; at += 4) if (data[at] >= 128) painted++;
    return painted / (data.length / 4);
  }

  /** Over the picture: what stays is veiled, what moves is tinted; and the brush of whoever uses keys. */
  #show() {
    const context = this.shown.getContext("2d");
    const steps = [["copy", 1, VEIL], ["destination-out", 1, null], ["source-over", 0.3, null]];
    for (const [how, alpha, colour] of steps) {
      Object.assign(context, { globalCompositeOperation: how, globalAlpha: alpha, fillStyle: colour ?? COLOUR });
      if (colour) context.fillRect(0, 0, this.width, this.height);
      else context.drawImage(this.layer, 0, 0);
    }
    context.globalAlpha = 1;
    this.#showCursor(context);
  }

  #showCursor(context) {
    if (!this.cursor.shown) return;
    for (const [width, colour] of [[5, "black"], [2, "white"]]) {
      Object.assign(context, { lineWidth: width, strokeStyle: colour });
      context.beginPath();
      context.arc(this.cursor.x, this.cursor.y, this.brush / 2, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  // -------------------------------------------------------------- the end

  /** The mask as the service wants it: black moves, white stays. */
  #mask() {
    const mask = Object.assign(document.createElement("canvas"), { width: this.width, height: this.height });
    const context = mask.getContext("2d");
    context.drawImage(this.layer, 0, 0);
    for (const [how, colour] of [["source-in", "black"], ["destination-over", "white"]]) {
      Object.assign(context, { globalCompositeOperation: how, fillStyle: colour });
      context.fillRect(0, 0, this.width, this.height);
    }
    return mask;
  }

  #finish() {
    const moving = this.#moving();
    this.#mask().toBlob((blob) => {
      this.done({ file: new File([blob], "mask.png", { type: "image/png" }), strokes: this.strokes, moving });
      this.#close();
    });
  }

  #close() {
    this.dialog.close();
  }
}

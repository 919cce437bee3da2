// Two clips side by side, played in step, with what differs between their inputs.
import { h } from "./dom.js";
import { clipOf, titleOf } from "./history.js";
import { fileName } from "./source.js";
import { together } from "./together.js";
import { labelOf } from "./words.js";

export function comparison(items, onClose) {
  const clips = items.map((item, at) => h("video", { src: clipOf(item), "aria-label": `Clip ${"AB"[at]}` }));
  const figures = clips.map((clip, at) =>
    h("figure", { class: "tile" }, h("div", { class: "tile-frame" }, clip), h("figcaption", {}, h("strong", {}, "AB"[at]), h("span", {}, titleOf(items[at].endpoint_id)))),
  );
  const close = h("button", { type: "button", class: "small", onclick: onClose }, "Close");
  return h("section", { class: "card comparison", "aria-label": "Comparison" },
    h("div", { class: "card-body" },
      h("div", { class: "row between" }, h("h2", { tabIndex: -1 }, "Side by side"), close),
      h("div", { class: "pair" }, figures), together(clips), differences(items)));
}

function differences(items) {
  const inputs = items.map((item) => ({ ...item.json_input }));
  const names = [...new Set(inputs.flatMap(Object.keys))];
  const rows = [
    ["Endpoint", items.map((item) => titleOf(item.endpoint_id))],
    ...names.map((name) => [labelOf(name), inputs.map((input) => input[name])]),
  ].filter(([, [a, b]]) => JSON.stringify(a) !== JSON.stringify(b));
  if (!rows.length) return h("p", { class: "help" }, "Their inputs are the same.");
  const head = h("thead", {}, h("tr", {}, ["What differs", "A", "B"].map((each) => h("th", { scope: "col" }, each))));
  const body = rows.map(([label, values]) => h("tr", {}, h("th", { scope: "row" }, label), apart(values).map((each) => h("td", {}, each))));
  return h("div", { class: "table-box", tabIndex: 0, role: "region", "aria-label": "What differs" }, h("table", {}, head, h("tbody", {}, body)));
}

/** Two values in words. Files may differ that are called the same. */
function apart(values) {
  const [a, b] = values.map(text);
  return [a, a === b ? `another ${b}` : b];
}

function text(value) {
  if (value === undefined || value === null) return "–";
  if (typeof value === "string" && /^(https?|data):/.test(value)) return fileName(value);
  if (typeof value !== "object") return String(value);
  return value.width ? `${value.width} × ${value.height}` : JSON.stringify(value);
}

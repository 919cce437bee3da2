// One small helper that makes elements, and what every module wants of the page: icons, tabs, copying, saying, keeping.

export const $ = (id) => document.getElementById(id);

/** An element with properties or attributes, and children. Text stays text: nothing here reads markup. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A control under its name. */
export const labelled = (text, control) => h("label", { class: "stack tight" }, h("span", { class: "label" }, text), control);

/** How fast a clip may be played. */
export const SPEEDS = [0.1, 0.25, 0.5, 1, 2];

const PATHS = {
  copy: "M9 9h10v10H9z M5 15V5h10",
  check: "M5 12.5l4.5 4.5L19 7",
  reset: "M4 12a8 8 0 1 0 2.6-5.9 M4 4v4.5h4.5",
  play: "M8 5.5v13l10.5-6.5z",
  pause: "M8.5 5.5v13 M15.5 5.5v13",
  back: "M15 6l-6 6 6 6",
  forward: "M9 6l6 6-6 6",
  loop: "M5 11V9a3 3 0 0 1 3-3h10 M15.5 3.5L18 6l-2.5 2.5 M19 13v2a3 3 0 0 1-3 3H6 M8.5 20.5L6 18l2.5-2.5",
  download: "M12 4v11 M7.5 11L12 15.5 16.5 11 M5 20h14",
  picture: "M4 5h16v14H4z M4 16l4.5-4.5 4 4 3-3L20 17 M15 9.2v.1",
  film: "M4 5h16v14H4z M8 5v14 M16 5v14 M4 9.7h4 M4 14.3h4 M16 9.7h4 M16 14.3h4",
  key: "M11 14.5a4 4 0 1 1-8 0 4 4 0 0 1 8 0z M9.8 11.7L19 2.5 M15.5 6l3 3 M13 8.5l2 2",
  lock: "M6 11h12v9H6z M8.5 11V8a3.5 3.5 0 0 1 7 0v3",
  unlock: "M6 11h12v9H6z M8.5 11V8a3.5 3.5 0 0 1 6.8-1.2",
  brush: "M4 20c3 0 5-1 5-3.5a2 2 0 0 0-4 0C5 18.5 4 19 4 20z M9.5 14.5L19 4.5",
  warning: "M12 4l9 16H3z M12 10v4.5 M12 17.2v.1",
  cross: "M6 6l12 12 M18 6L6 18",
  clock: "M12 4a8 8 0 1 0 .01 0z M12 8v4.5l3 2",
  layers: "M4 5h7v6H4z M13 5h7v6h-7z M4 13h7v6H4z M13 13h7v6h-7z",
};

/** A line drawing beside words that say the same. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", "aria-hidden": "true", class: "icon" })) {
    svg.setAttribute(key, value);
  }
  svg.append(path);
  return svg;
}

/** Tell those who hear the page what those who see it see. */
export function say(text) {
  $("said").textContent = text;
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h("textarea", { value: text, class: "off-screen" }); // over plain HTTP there is no clipboard to write to
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** A button that copies what `read` answers when it is pressed. */
export function copyButton(read, label) {
  const words = h("span", {}, "Copy");
  const button = h("button", { type: "button", class: "small", "aria-label": label }, icon("copy"), words);
  button.onclick = async () => {
    await copy(read());
    words.textContent = "Copied";
    say("Copied");
    setTimeout(() => (words.textContent = "Copy"), 1500);
  };
  return button;
}

/** Make a tablist work: arrows move, and `onShow` hears which panel is to be seen. */
export function tabs(list, onShow = () => {}) {
  const all = [...list.querySelectorAll("[role=tab]")];
  const show = (tab) => {
    for (const each of all) {
      each.setAttribute("aria-selected", each === tab);
      each.tabIndex = each === tab ? 0 : -1;
      $(each.getAttribute("aria-controls")).hidden = each !== tab;
    }
    onShow(tab);
  };
  list.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = all[(all.indexOf(document.activeElement) + step + all.length) % all.length];
    next.focus();
    show(next);
  };
  for (const tab of all) tab.onclick = () => show(tab);
  return { show: (id) => show($(id)) };
}

/** What this tab keeps over a reload. Where a browser has no room for it, it is not kept, and nothing else breaks. */
export function keep(name, value) {
  try {
    sessionStorage.setItem(name, JSON.stringify(value));
  } catch {
    sessionStorage.removeItem(name); // rather nothing than something older
  }
}

export const kept = (name) => JSON.parse(sessionStorage.getItem(name) ?? "null");

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Where something is that the service named by its public address, as seen from this page. */
export function here(url, publicUrl) {
  return url.startsWith(`${publicUrl}/`) ? url.slice(publicUrl.length) : url;
}

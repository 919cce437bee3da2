// The key: kept in this tab, on this device only when asked to, and forgotten when told to.
import { $, h, icon, say } from "./dom.js";

const NAME = "svd-serve key";
const LOOPBACK = /^(localhost|127(\.\d+){3}|\[::1\])$/; // elsewhere the service gives its key to nobody
const listeners = [];

/** What is public of the key. */
export const keyId = () => currentKey().split(":")[0];

export const currentKey = () => sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME) ?? "";

export const onKey = (listener) => listeners.push(listener);

function setKey(key, remember = false) {
  sessionStorage.removeItem(NAME);
  localStorage.removeItem(NAME);
  if (key) (remember ? localStorage : sessionStorage).setItem(NAME, key);
  drawButton();
  for (const listener of listeners) listener(key);
}

/** Take the key that the address brings, and leave it there no longer. A key is no form's value: a plus stays one. */
function takeKeyFromAddress() {
  const given = /^#key=(.+)/.exec(location.hash)?.[1];
  if (!given) return;
  history.replaceState(null, "", location.pathname + location.search);
  setKey(decoded(given));
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Ask the service for its key, which it gives to its own machine. */
export async function findKey() {
  if (currentKey() || !LOOPBACK.test(location.hostname)) return;
  const reply = await fetch("/playground/key").catch(() => null);
  const found = reply?.ok ? await reply.json().catch(() => null) : null;
  if (found?.key && !currentKey()) setKey(found.key);
}

function drawButton() {
  const id = keyId();
  $("key-button").replaceChildren(icon("key"), h("span", {}, id ? shorten(id) : "Enter a key"));
  $("key-button").classList.toggle("wanting", !id);
  $("key-button").setAttribute("aria-label", id ? `Key ${shorten(id)}: change or forget it` : "Enter a key");
}

const shorten = (id) => (id.length > 12 ? `${id.slice(0, 10)}…` : id);

export function askForKey(why = "") {
  $("key-why").textContent = why;
  $("key-why").hidden = !why;
  $("key").value = currentKey();
  $("remember").checked = localStorage.getItem(NAME) !== null;
  $("forget").hidden = !currentKey();
  $("key-problem").textContent = "";
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

function takeKey(event) {
  const key = $("key").value.trim();
  if (!/^[^\s:]+:\S+$/.test(key)) {
    event.preventDefault();
    $("key-problem").textContent = "A key is written id:secret, with a colon between its two parts.";
    $("key").focus();
    return;
  }
  setKey(key, $("remember").checked);
  say("The key is set");
}

function drawDialog() {
  const button = (text, properties) => h("button", { type: "button", ...properties }, text);
  const input = h("input", { id: "key", type: "password", autocomplete: "off", placeholder: "id:secret" });
  input.setAttribute("aria-describedby", "key-problem");
  const form = h("form", { method: "dialog", id: "key-form" },
    h("h2", { id: "key-title" }, "Your key"),
    h("p", { class: "notice", id: "key-why", hidden: true }),
    h("p", { class: "help" }, "It is sent only to this service, and kept in this tab until you close it."),
    h("label", { class: "label", htmlFor: "key" }, "Key"), input,
    h("p", { class: "field-problem", id: "key-problem", role: "alert" }),
    h("label", { class: "check" }, h("input", { type: "checkbox", id: "remember" }), "Remember it on this device"),
    h("div", { class: "row end" }, button("Forget the key", { class: "quiet push", id: "forget" }),
      button("Close", { class: "secondary", id: "key-close" }), button("Use it", { class: "primary", type: "submit" })));
  document.body.append(h("dialog", { id: "key-dialog", "aria-labelledby": "key-title" }, form));
}

/** Wire the key's button and its dialog, and take a key from the address, now or when it comes there. */
export function startKey() {
  drawDialog();
  drawButton();
  takeKeyFromAddress();
  addEventListener("hashchange", takeKeyFromAddress);
  $("key-button").onclick = () => askForKey();
  $("key-form").onsubmit = takeKey;
  $("key-close").onclick = () => $("key-dialog").close();
  $("forget").onclick = () => {
    setKey("");
    $("key-dialog").close();
    say("The key is forgotten");
  };
}

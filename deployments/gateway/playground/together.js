// Several clips played in step: one leads, the others are kept at its time.
import { h, icon, SPEEDS } from "./dom.js";

const TOLERANCE = 0.06; // seconds, about a frame and a half

/** Controls that play and move all videos at once. */
export function together(videos) {
  const toggle = h("button", { type: "button", class: "icon-button" });
  const place = h("input", { type: "range", name: "place", min: 0, max: 1000, value: 0, step: 1, "aria-label": "Place in all clips" });
  const speed = h("select", { name: "speed", "aria-label": "Speed of all clips", class: "speed" },
    SPEEDS.map((each) => new Option(`${each}×`, each, each === 1, each === 1)));
  const leader = () => videos.reduce((longest, each) => ((each.duration || 0) > (longest.duration || 0) ? each : longest));
  const all = (act) => videos.forEach(act);
  let playing = false;
  let touched = false;
  let frame = 0;

  const paint = () => {
    toggle.replaceChildren(icon(playing ? "pause" : "play"));
    toggle.setAttribute("aria-label", playing ? "Pause all clips" : "Play all clips");
  };
  const set = (on) => {
    playing = on;
    all((each) => (on ? each.play().catch(() => {}) : each.pause()));
    paint();
    cancelAnimationFrame(frame);
    if (on) frame = requestAnimationFrame(tick);
  };
  const touch = (on) => {
    touched = true;
    set(on);
  };
  const tick = () => {
    if (!toggle.isConnected) return;
    const first = leader();
    const at = first.currentTime;
    place.value = (1000 * at) / (first.duration || 1);
    all((each) => follow(each, first, at));
    frame = requestAnimationFrame(tick);
  };
  place.oninput = () => {
    touch(false);
    const first = leader();
    const at = (place.valueAsNumber / 1000) * (first.duration || 0);
    all((each) => (each.currentTime = Math.min(at, (each.duration || at) - 0.001)));
  };
  speed.onchange = () => all((each) => (each.playbackRate = Number(speed.value)));
  toggle.onclick = () => touch(!playing);
  all((each) => Object.assign(each, { muted: true, loop: true, playsInline: true, preload: "auto" }));
  paint();
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) ready(videos).then(() => touched || set(true));
  return h("div", { class: "controls" }, toggle, place, h("span", { class: "controls-end" }, speed));
}

function follow(video, leader, at) {
  if (video === leader || !video.duration) return;
  const wanted = at % video.duration;
  const apart = Math.abs(video.currentTime - wanted);
  if (Math.min(apart, video.duration - apart) > TOLERANCE) video.currentTime = wanted;
}

const ready = (videos) =>
  Promise.all(videos.map((each) => each.readyState >= 2 || new Promise((done) => each.addEventListener("loadeddata", done, { once: true }))));

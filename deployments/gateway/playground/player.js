// A clip with what eyes need to judge it: loop, frame by frame, slow, whole and full, and a way to keep it.
import { h, icon, SPEEDS } from "./dom.js";
import { many } from "./words.js";

/** A player. `fps` is what the clip was made with: a browser does not tell. */
export function clipPlayer(url, { fps, name = "clip.mp4" }) {
  const video = h("video", { src: url, loop: true, muted: true, autoplay: true, playsInline: true, id: "video", tabIndex: 0 });
  video.setAttribute("aria-label", "The clip. Space plays and pauses, comma and full stop step by a frame.");
  const frames = () => Math.max(1, Math.round(video.duration * fps));
  const frame = () => Math.min(frames() - 1, Math.floor(video.currentTime * fps + 1e-3));
  const goTo = (number) => {
    video.pause();
    video.currentTime = (((number % frames()) + frames()) % frames() + 0.5) / fps; // the middle of a frame is surely in it
  };
  const controls = drawControls(url, name);
  const { toggle, back, forward, loop, speed, place, words } = controls;
  const refresh = () => {
    if (!video.duration) return;
    place.max = frames() - 1;
    place.value = frame();
    words.textContent = `${frame() + 1} / ${frames()}`;
    place.setAttribute("aria-valuetext", `Frame ${frame() + 1} of ${many(frames(), "frame")}`);
  };
  const flip = () => (video.paused ? video.play() : video.pause());
  toggle.onclick = video.onclick = flip;
  back.onclick = () => goTo(frame() - 1);
  forward.onclick = () => goTo(frame() + 1);
  place.oninput = () => goTo(place.valueAsNumber);
  speed.onchange = () => (video.playbackRate = Number(speed.value));
  loop.onclick = () => {
    video.loop = !video.loop;
    loop.setAttribute("aria-pressed", video.loop);
  };
  video.onkeydown = (event) => {
    const act = { " ": flip, ",": back.onclick, ".": forward.onclick, ArrowLeft: back.onclick, ArrowRight: forward.onclick }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  };
  const paint = () => toggle.replaceChildren(icon(video.paused ? "play" : "pause"));
  const label = () => toggle.setAttribute("aria-label", video.paused ? "Play" : "Pause");
  for (const kind of ["play", "pause", "ended"]) video.addEventListener(kind, () => (paint(), label(), refresh()));
  for (const kind of ["loadedmetadata", "seeked", "timeupdate"]) video.addEventListener(kind, refresh);
  video.onloadeddata = () => {
    video.style.setProperty("--ratio", video.videoWidth / video.videoHeight);
    video.playbackRate = Number(speed.value);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) video.pause();
  };
  paint();
  label();
  const lost = h("p", { class: "help bad", hidden: true }, "This clip cannot be played. Its file may have been deleted.");
  video.onerror = () => (lost.hidden = false);
  return h("div", { class: "player" }, video, lost, controls.root);
}

function drawControls(url, name) {
  const button = (label, picture) => h("button", { type: "button", class: "icon-button", "aria-label": label, title: label }, icon(picture));
  const toggle = h("button", { type: "button", class: "icon-button" });
  const [back, forward] = [button("One frame back", "back"), button("One frame forward", "forward")];
  const loop = button("Loop", "loop");
  loop.setAttribute("aria-pressed", "true");
  const place = h("input", { type: "range", name: "frame", min: 0, max: 24, step: 1, value: 0, "aria-label": "Frame" });
  const words = h("span", { class: "frame-words" });
  const options = SPEEDS.map((each) => new Option(`${each}×`, each, each === 1, each === 1));
  const speed = h("select", { name: "speed", "aria-label": "Speed", class: "speed" }, options);
  const save = h("a", { class: "button small", href: url, download: name ?? "clip.mp4", id: "download" }, icon("download"), "Download");
  const root = h("div", { class: "controls" }, toggle, back, forward, place, words, h("span", { class: "controls-end" }, loop, speed, save));
  return { root, toggle, back, forward, loop, place, words, speed };
}

// Numbers as people read them.

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 100) return `${Math.round(value)} s`;
  return value < 5400 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

/** The time of day where the reader is. */
export const timeOfDay = (time) => new Date(time).toLocaleTimeString(undefined, { hourCycle: "h23", hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** A clock that runs: 0:07. */
export function clock(ms) {
  const whole = Math.max(0, Math.floor(ms / 1000));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

export function money(usd, currency = "USD") {
  if (usd === null || usd === undefined) return "–";
  const small = usd !== 0 && Math.abs(usd) < 0.01;
  const digits = small ? { maximumSignificantDigits: 3 } : { minimumFractionDigits: 2, maximumFractionDigits: 4 };
  return usd.toLocaleString("en", { style: "currency", currency, ...digits });
}

export const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 3 });

export const many = (count, one, more = `${one}s`) => `${number(count)} ${count === 1 ? one : more}`;

export function bytes(count) {
  if (count < 1e6) return `${Math.max(1, Math.round(count / 1e3))} kB`;
  return `${(count / 1e6).toFixed(1)} MB`;
}

export function ago(time) {
  const passed = (Date.now() - new Date(time)) / 1000;
  if (passed < 60) return "just now";
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (passed < 86400) return `${Math.floor(passed / 3600)} h ago`;
  return new Date(time).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
}

/** Whether a value is too long to be kept by a browser: a file may be written out in it. */
export const isLong = (value) => typeof value === "string" && value.length > 20_000;

const LABELS = {
  image_url: "Picture",
  mask_image_url: "Mask",
  control_maps_data_url: "Depth maps",
  motion_bucket_id: "Motion",
  cond_aug: "Noise",
  fps: "Frames a second",
  steps: "Steps",
  seed: "Seed",
  prompt: "Prompt",
  video_size: "Size",
};

/** What a field of an input is called on the page. */
export const labelOf = (name, property) => LABELS[name] ?? property?.title ?? name;

// The operator's page: endpoints, replicas, queue, latency, cost and errors of today, read again every few seconds.
import { call } from "./api.js";
import { $, h, icon, say } from "./dom.js";
import { askForKey, currentKey, findKey, onKey, startKey } from "./key.js";
import { model } from "./model.js";
import { many, money, number, seconds } from "./words.js";

const EVERY_MS = 5000;
let timer = null;
let asked = 0;
let ahead = null; // milliseconds that this machine's clock is before the service's; unknown until asked
let isLost = false;

/** Today, on this person's wall, but by the service's clock: to it, a day that it has not seen begin is a mistake. */
function today() {
  const start = new Date(Date.now() - ahead);
  start.setHours(0, 0, 0, 0);
  return `start=${encodeURIComponent(start.toISOString())}&bound_to_timeframe=false`;
}

async function compareClocks() {
  const reply = await fetch(location.pathname, { method: "HEAD" }).catch(() => null);
  const told = Date.parse(reply?.headers.get("date"));
  return Number.isNaN(told) ? 0 : Date.now() - told;
}

const METRICS = "summary,request_count,success_count,user_error_count,cancelled_count,error_count,p50_duration,p90_duration,p50_prepare_duration,p90_prepare_duration";

async function refresh() {
  clearTimeout(timer);
  const mine = ++asked;
  if (!currentKey()) return showState("key", "An operator's key is needed", "This page shows everybody's requests and what they cost. Enter a key with the ADMIN scope.");
  try {
    ahead ??= await compareClocks();
    const [state, speed, costs] = await Promise.all([
      call("/playground/state"),
      call(`/v1/models/analytics?${today()}&expand=${METRICS}`),
      call(`/v1/costs?${today()}&expand=summary`),
    ]);
    if (mine === asked) draw(state.endpoints, byId(speed.summary), byId(costs.summary), costs);
  } catch (problem) {
    if (mine !== asked) return;
    if ([401, 403].includes(problem.status)) return showRefusal(problem);
    ahead = null; // it may be the clocks
    tell(true, `${problem.title ?? "Something went wrong"}; trying again`);
  }
  if (mine === asked && !document.hidden) timer = setTimeout(refresh, EVERY_MS);
}

/** How fresh this is. Who hears the page is told only when that begins or ends to be a problem. */
function tell(isNowLost, text) {
  $("fresh").textContent = text;
  if (isNowLost !== isLost) say(text);
  isLost = isNowLost;
}

const byId = (lines) => new Map(lines.map((line) => [line.endpoint_id, line]));

function showRefusal(problem) {
  if (problem.status === 403) showState("lock", "This key may not see this page", "It needs a key with the ADMIN scope: the one the service printed when it started, or one made by svd-serve keys.");
  else showState("warning", problem.title, problem.text);
}

function showState(picture, title, text) {
  $("fresh").textContent = "";
  $("totals").replaceChildren();
  $("endpoint-cards").replaceChildren();
  const enter = h("button", { type: "button", class: "primary", onclick: () => askForKey() }, "Enter a key");
  $("operator-state").replaceChildren(
    h("div", { class: "card blank" }, icon(picture), h("p", { class: "blank-title" }, title), h("p", { class: "help" }, text), enter),
  );
}

// ---------------------------------------------------------------- drawing

function draw(endpoints, speeds, costs, { totals, currency }) {
  $("operator-state").replaceChildren();
  tell(false, `Live, ${new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" })}`);
  const sum = (read) => endpoints.reduce((total, each) => total + (read(each) ?? 0), 0);
  const [errors, refused, cancelled] = ["error_count", "user_error_count", "cancelled_count"].map((name) => sum(({ id }) => speeds.get(id)?.[name]));
  $("totals").replaceChildren(
    total("Waiting", number(sum((each) => each.waiting)), `${number(sum((each) => each.running))} at work`),
    total("Videos today", number(totals.successes), `of ${many(totals.requests, "request")}`),
    total("Errors today", number(errors), `${many(refused, "refused input")}, ${number(cancelled)} cancelled`, errors > 0),
    total("Cost of a video", money(totals.cost_per_video_usd, currency), `${money(totals.cost_usd, currency)} today`),
  );
  $("endpoint-cards").replaceChildren(...endpoints.map((each) => endpointCard(each, speeds.get(each.id), costs.get(each.id), currency)));
}

const total = (name, value, more, bad) =>
  h("div", { class: bad ? "card total bad-total" : "card total" }, h("p", { class: "help" }, name), h("p", { class: "total-value" }, value), h("p", { class: "help" }, more));

function endpointCard(endpoint, speed, cost, currency) {
  const { id, title, waiting, running, replicas } = endpoint;
  const lines = [
    ["Waiting", number(waiting)],
    ["At work", number(running)],
    ["Run p50 / p90", `${seconds(speed?.p50_duration)} / ${seconds(speed?.p90_duration)}`],
    ["Wait p50 / p90", `${seconds(speed?.p50_prepare_duration)} / ${seconds(speed?.p90_prepare_duration)}`],
    ["Videos today", number(speed?.success_count ?? 0)],
    ["Errors today", number(speed?.error_count ?? 0)],
    ["Refused inputs", number(speed?.user_error_count ?? 0)],
    ["Cancelled", number(speed?.cancelled_count ?? 0)],
    ["Cost of a video", money(cost?.cost_per_video_usd, currency)],
    ["With idle time", money(cost?.loaded_cost_per_video_usd, currency)],
  ];
  return h("article", { class: "card endpoint-card" },
    h("div", { class: "row between" }, h("div", {}, h("h2", {}, h("a", { href: `/models/${id}` }, title)), h("code", { class: "help" }, id)), replicaDots(replicas)),
    h("dl", { class: "facts" }, lines.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))));
}

function replicaDots(replicas) {
  if (!replicas) return h("p", { class: "help" }, "Replicas unknown");
  const words = [`${replicas.ready} ready`, replicas.pending && `${replicas.pending} starting`, replicas.leaving && `${replicas.leaving} leaving`].filter(Boolean);
  const kind = replicas.ready ? "good" : replicas.pending ? "soon" : "none";
  return h("p", { class: `replicas ${kind}` }, words.join(", "));
}

async function start() {
  document.title = `Operator · ${new URL(model.public_url).host}`;
  startKey();
  await findKey();
  onKey(refresh);
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
  refresh();
}

start();

// One request from its submission to its end: submit, follow, cancel. Whoever shows it hears of every change.
import { call, explain, Problem } from "./api.js";
import { sleep } from "./dom.js";
import { model } from "./model.js";
import { isLong } from "./words.js";

const POLL_MS = 250; // the service itself holds a poll that would be told nothing new
const AGAIN_MS = 2000;
const MOST_FAILURES = 150; // of polls in a row: five minutes
const STEPS = 25; // of an endpoint that lets nobody choose them

const CANCELLED = "client_cancelled";

/** What a tab keeps while it runs, so that it is taken up again after a reload: a clip, and the clips of a sweep. */
export const RUNNING = `run of ${model.id}`;
export const SWEEPING = `sweep of ${model.id}`;

const pathOf = (url) => new URL(url).pathname;

export class Run {
  /** What is known of a request: `phase` is sending, waiting, running, fetching, done, failed or cancelled. */
  constructor(endpoint, input, onChange) {
    Object.assign(this, { endpoint, input, onChange, phase: "sending", id: null, path: null, logs: [], progress: null });
    Object.assign(this, { position: null, preview: null, result: null, problem: null, lost: false, canceling: false });
    Object.assign(this, { notice: "", past: null, sentAt: Date.now(), key: newKey() });
  }

  /** Take up a request that an earlier page submitted. */
  static resumed(saved, onChange) {
    return Object.assign(new Run(saved.endpoint, saved.input, onChange), saved, { phase: "waiting" });
  }

  /** A request that ended some time ago, as the history has it: the queue is asked nothing. */
  static past(item, onChange) {
    const run = new Run(item.endpoint_id, item.json_input ?? {}, onChange);
    return Object.assign(run, { id: item.request_id, past: item }, endingOf(item));
  }

  get saved() {
    const { endpoint, id, path, sentAt } = this;
    return { endpoint, input: short(this.input), id, path, sentAt };
  }

  get ended() {
    return ["done", "failed", "cancelled"].includes(this.phase);
  }

  /** Whether nobody knows if the service has it: no answer came. Sent again with the same key, it is accepted once. */
  get isUnsure() {
    return this.phase === "failed" && !this.id && this.problem.passes;
  }

  get #isOpen() {
    return !this.ended && this.phase !== "fetching";
  }

  async submit(previews) {
    if (this.canceling) return this.#fail(new Problem("Cancelled", "It was not sent.", { type: CANCELLED }));
    try {
      const query = previews ? `?previews=${previews}` : "";
      const headers = { "idempotency-key": this.key };
      const accepted = await call(`/queue/${this.endpoint}${query}`, { method: "POST", body: this.input, headers });
      this.#change({ id: accepted.request_id, path: pathOf(accepted.response_url) });
      this.#take(accepted);
    } catch (problem) {
      return this.#fail(problem);
    }
    if (this.canceling) await this.#cancelNow();
  }

  /** Follow it to its end. A connection that is lost for a while loses nothing: the request goes on. */
  async follow() {
    for (let failures = 0; this.#isOpen; await sleep(failures ? AGAIN_MS : POLL_MS)) {
      try {
        this.#take(await call(`${this.path}/status?logs=1`));
        failures = 0;
        if (!this.#isOpen) break;
      } catch (problem) {
        if (!problem.passes || ++failures > MOST_FAILURES) return this.#fail(problem);
        this.#change({ lost: true });
      }
    }
    if (this.phase === "fetching") await this.#fetchResult();
  }

  /** End it. What is being sent is cancelled as soon as it has an address; what is still to be sent, is not sent. */
  async cancel() {
    if (this.ended || this.canceling) return;
    this.#change({ canceling: true, notice: "" });
    if (this.path) await this.#cancelNow();
  }

  async #cancelNow() {
    try {
      await call(`${this.path}/cancel`, { method: "PUT" });
    } catch (problem) {
      if (this.ended || problem.status === 400) return; // it has ended by itself meanwhile
      this.#change({ canceling: false, notice: `It was not cancelled: ${problem.title.toLowerCase()}. Try again.` });
    }
  }

  #change(news) {
    Object.assign(this, news);
    this.onChange(this);
  }

  #take(status) {
    const logs = status.logs ?? this.logs;
    const steps = logs.filter((line) => line.progress !== undefined && line.progress !== null);
    const news = { logs, lost: false, progress: steps.at(-1)?.progress ?? null };
    news.preview = logs.filter((line) => line.preview).at(-1)?.preview.url ?? this.preview;
    if (status.status === "IN_QUEUE") Object.assign(news, { phase: "waiting", position: status.queue_position ?? null });
    if (status.status === "IN_PROGRESS") news.phase = "running";
    if (status.status === "COMPLETED") Object.assign(news, { phase: "fetching", failedAs: status.error_type ?? null });
    this.#change(news);
    if (news.failedAs === CANCELLED) this.#fail(explain(499, new Headers(), status));
  }

  async #fetchResult() {
    for (let failures = 0; ; failures++) {
      try {
        return this.#change({ result: await call(this.path), phase: "done" });
      } catch (problem) {
        const isItsOwn = problem.status !== 0 && (this.failedAs || !problem.passes);
        if (isItsOwn || failures > MOST_FAILURES) return this.#fail(problem);
        this.#change({ lost: true });
        await sleep(AGAIN_MS);
      }
    }
  }

  #fail(problem) {
    this.#change(failure(problem));
  }
}

function endingOf({ status_code: status, json_output: output }) {
  if (status === 499) return failure(explain(status, new Headers(), { error_type: CANCELLED }));
  if (status >= 300) return failure(explain(status, new Headers(), output));
  return output ? { phase: "done", result: output } : failure(new Problem("Not kept", "What it made is kept no longer."));
}

function failure(problem) {
  const known = problem instanceof Problem ? problem : new Problem("Something went wrong in this page", String(problem));
  return { phase: known.type === CANCELLED ? "cancelled" : "failed", problem: known };
}

const newKey = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

/** An input without the files that are written out in it: they may be too much to keep. */
const short = (input) => Object.fromEntries(Object.entries(input).map(([name, value]) => [name, isLong(value) ? `${value.slice(0, 60)}…` : value]));

/** How many preview pictures make a run worth watching, and cost it little. */
export const previewsOf = (input) => Math.max(1, Math.round((input.steps ?? STEPS) / 6));

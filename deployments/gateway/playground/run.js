// One request from its submission to its end: submit, follow, cancel. Whoever shows it hears of every change.
import { call, explain, Problem } from "./api.js";
import { sleep } from "./dom.js";

const POLL_MS = 250; // the service itself holds a poll that would be told nothing new
const AGAIN_MS = 2000;
const MOST_FAILURES = 150; // of polls in a row: five minutes

const CANCELLED = "client_cancelled";

const pathOf = (url) => new URL(url).pathname;

export class Run {
  /** What is known of a request: `phase` is sending, waiting, running, done, failed or cancelled. */
  constructor(endpoint, input, onChange) {
    Object.assign(this, { endpoint, input, onChange, phase: "sending", id: null, path: null, logs: [], progress: null });
    Object.assign(this, { position: null, preview: null, result: null, problem: null, lost: false, canceling: false });
    Object.assign(this, { sentAt: Date.now(), startedAt: null, endedAt: null });
  }

  /** Take up a request that an earlier page submitted. */
  static resumed(saved, onChange) {
    return Object.assign(new Run(saved.endpoint, saved.input, onChange), saved, { phase: "waiting" });
  }

  get saved() {
    const { endpoint, input, id, path, sentAt } = this;
    return { endpoint, input, id, path, sentAt };
  }

  get ended() {
    return ["done", "failed", "cancelled"].includes(this.phase);
  }

  get #isOpen() {
    return !this.ended && this.phase !== "fetching";
  }

  async submit(previews) {
    try {
      const query = previews ? `?previews=${previews}` : "";
      const accepted = await call(`/queue/${this.endpoint}${query}`, { method: "POST", body: this.input });
      this.#change({ id: accepted.request_id, path: pathOf(accepted.response_url) });
      this.#take(accepted);
    } catch (problem) {
      this.#fail(problem);
    }
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

  async cancel() {
    if (this.ended || !this.path) return;
    this.#change({ canceling: true });
    try {
      await call(`${this.path}/cancel`, { method: "PUT" });
    } catch (problem) {
      if (problem.status !== 400) this.#change({ canceling: false }); // 400: it has ended by itself meanwhile
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
    if (status.status === "IN_PROGRESS") Object.assign(news, { phase: "running", startedAt: this.startedAt ?? Date.now() });
    if (status.status === "COMPLETED") Object.assign(news, { phase: "fetching", failedAs: status.error_type ?? null });
    this.#change(news);
    if (news.failedAs === CANCELLED) this.#fail(explain(499, new Headers(), status));
  }

  async #fetchResult() {
    for (let failures = 0; ; failures++) {
      try {
        return this.#change({ result: await call(this.path), phase: "done", endedAt: Date.now() });
      } catch (problem) {
        const isItsOwn = problem.status !== 0 && (this.failedAs || !problem.passes);
        if (isItsOwn || failures > MOST_FAILURES) return this.#fail(problem);
        this.#change({ lost: true });
        await sleep(AGAIN_MS);
      }
    }
  }

  #fail(problem) {
    const known = problem instanceof Problem ? problem : new Problem("Something went wrong in this page", String(problem));
    const phase = known.type === "client_cancelled" ? "cancelled" : "failed";
    this.#change({ phase, problem: known, endedAt: Date.now() });
  }
}

/** How many preview pictures make a run worth watching, and cost it little. */
export const previewsOf = (input) => Math.max(1, Math.round((input.steps ?? 25) / 6));

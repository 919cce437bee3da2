// Calls to the service, and what went wrong with them in words a person understands.
import { currentKey } from "./key.js";

/** A failure that can be shown. `fields` says what is wrong with which; `passes` whether it may go by itself. */
export class Problem extends Error {
  constructor(title, text, more = {}) {
    super(text);
    Object.assign(this, { title, text, fields: {}, status: 0, passes: false, ...more });
  }
}

const PATIENCE_MS = 60_000; // without a sign of life
const SLOWEST = 20; // bytes a millisecond of what a call sends: a slow line is not yet a lost one

const BY_TYPE = {
  rate_limited: ["Too many calls", "This key makes more calls than it may."],
  concurrent_requests_limit: ["Too many at once", "As many requests of this key run already as may run at once."],
  queue_full: ["The queue is full", "As many requests wait as this key may have waiting."],
  spend_limit: ["The day's budget is spent", "This key has used what it may spend in a day."],
  upload_limit: ["The day's uploads are used up", "This key has uploaded as much as it may in a day."],
  client_cancelled: ["Cancelled", "The request was cancelled. Nothing is billed."],
  runner_disconnected: ["The worker was lost", "The process that made this clip went away, several times. Try again."],
  runner_server_error: ["The model failed", "Something went wrong inside the model. Try again, or other values."],
  startup_timeout: ["It did not start in time", "The request waited longer than it was allowed to."],
  generation_timeout: ["It took too long", "The clip was not ready within the time that a run may take."],
};

const BY_STATUS = {
  400: ["That cannot be done", ""],
  401: ["This key is not accepted", "It may be mistyped, expired or revoked. Enter another one."],
  403: ["This key may not do that", "It needs a key with the ADMIN scope."],
  404: ["Not found", "It may have been deleted, or belong to another key."],
  408: ["The connection is too slow", "The server stopped waiting for what was sent."],
  413: ["That is too large", "The server does not take files of this size."],
  422: ["Something needs another look", "See what is marked in the form."],
  429: ["Too many requests", "The limits of this key are reached for now."],
  500: ["The server has a problem", "It is not your input. Try again in a moment."],
  502: ["The server cannot be reached", "Something between this page and the service does not answer."],
  503: ["The service is busy or restarting", "Nothing was lost. Try again in a moment."],
  504: ["It took too long", "No answer came in time."],
};

const UNREACHABLE = "Check the connection, and whether the service runs. What you entered stays here.";

/** No answer came, for a reason that a browser does not tell, or in all the time that was given. */
function unanswered(isLate = false) {
  const title = isLate ? "The server does not answer" : "The server cannot be reached";
  return new Problem(navigator.onLine ? title : "You are offline", UNREACHABLE, { passes: true });
}

/** What an answer that is no success means. */
export function explain(status, headers, body) {
  if (status === 401 && !currentKey()) return new Problem("A key is needed", "Enter the key of this service.", { status });
  const type = headers.get("x-fal-error-type") ?? body?.error_type ?? body?.error?.type;
  const details = Array.isArray(body?.detail) ? body.detail : [];
  const told = typeof body?.detail === "string" ? body.detail : body?.error?.message;
  const [title, text] = BY_TYPE[type] ?? BY_STATUS[status] ?? BY_STATUS[status < 500 ? 400 : 500];
  const wait = Number(headers.get("retry-after")) || null;
  const fields = fieldsOf(details);
  const loose = details.filter((each) => !nameOf(each)).map((each) => each.msg);
  const words = [text, ...loose, said(status, type, told), wait && `Try again in ${wait} s.`].filter(Boolean).join(" ");
  const passes = status === 408 || status === 429 || status >= 500;
  return new Problem(title, words, { status, type: type ?? details[0]?.type, fields, passes, body });
}

/** The server's own sentence, where it says more than ours. */
function said(status, type, told) {
  if (!told || status === 401 || type === "client_cancelled") return "";
  return /[.!?]$/.test(told) ? told : `${told}.`;
}

const nameOf = (detail) => detail.loc?.find((part) => typeof part === "string" && part !== "body");

function fieldsOf(details) {
  return Object.fromEntries(details.filter(nameOf).map((each) => [nameOf(each), sentence(each.msg)]));
}

function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

/** One call, with the key. Answers the JSON. */
export async function call(path, { method = "GET", body, headers = {} } = {}) {
  const key = currentKey();
  const sent = body === undefined ? undefined : JSON.stringify(body);
  let reply, answer;
  try {
    reply = await fetch(path, {
      method,
      body: sent,
      headers: {
        ...(key && { authorization: `Key ${key}` }),
        ...(sent !== undefined && { "content-type": "application/json" }),
        ...headers,
      },
      signal: AbortSignal.timeout(PATIENCE_MS + (sent?.length ?? 0) / SLOWEST),
    });
    answer = parsed(await reply.text());
  } catch (failure) {
    throw unanswered(failure.name === "TimeoutError");
  }
  if (!reply.ok) throw explain(reply.status, reply.headers, answer);
  return answer;
}

/** Upload a file as fal's clients do: ask for an address, then put it there. Answers the file's own address. */
export async function upload(file, toHere, onProgress = () => {}, signal = null) {
  const asked = { file_name: file.name, content_type: file.type || "application/octet-stream" };
  const place = await call("/storage/upload/initiate?storage_type=fal-cdn-v3", { method: "POST", body: asked });
  await put(toHere(place.upload_url), file, asked.content_type, onProgress, signal);
  return place.file_url;
}

function put(url, file, type, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not tell how much has gone
    const begun = performance.now();
    const wait = () => (request.timeout = performance.now() - begun + PATIENCE_MS); // it counts from the beginning
    request.open("PUT", url);
    request.setRequestHeader("content-type", type);
    request.upload.onprogress = (event) => {
      wait();
      if (event.lengthComputable) onProgress(event.loaded / event.total);
    };
    request.onerror = () => reject(unanswered());
    request.ontimeout = () => reject(unanswered(true));
    request.onabort = () => reject(new Problem("The file was taken away", "It was removed or replaced before it was uploaded."));
    request.onload = () => {
      if (request.status < 300) return resolve();
      reject(explain(request.status, headersOf(request), parsed(request.responseText)));
    };
    signal?.addEventListener("abort", () => request.abort());
    wait();
    request.send(file);
    if (signal?.aborted) request.abort();
  });
}

const headersOf = (request) => ({ get: (name) => request.getResponseHeader(name) });

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

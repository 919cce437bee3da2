// The playground's one module: a form from the endpoint's schema, then submit, poll and show, as a fal client does.
const model = JSON.parse(document.getElementById("model").textContent);
const $ = (id) => document.getElementById(id);
const POLL_MS = 500;

function control(name, property) {
  if (name.endsWith("_url")) {
    const accept = name.includes("image") ? "image/*" : ".zip,.tar,.gz";
    return Object.assign(document.createElement("input"), { type: "file", accept });
  }
  if (name === "prompt") return document.createElement("textarea");
  const choices = property.anyOf?.find((choice) => choice.enum)?.enum;
  if (choices) {
    const select = document.createElement("select");
    select.append(...choices.map((choice) => new Option(choice, choice, false, choice === property.default)));
    return select;
  }
  const input = document.createElement("input");
  input.placeholder = property.default ?? "";
  if (["integer", "number"].includes(property.type)) {
    Object.assign(input, { type: "number", min: property.minimum ?? "", max: property.maximum ?? "" });
    input.step = property.type === "integer" ? 1 : "any";
  }
  return input;
}

function drawForm() {
  const isOptional = ([name]) => !model.schema.required?.includes(name);
  const fields = Object.entries(model.schema.properties).sort((a, b) => isOptional(a) - isOptional(b));
  for (const [name, property] of fields) {
    const label = Object.assign(document.createElement("label"), { textContent: name, htmlFor: name });
    const field = Object.assign(control(name, property), { id: name, name });
    field.required = !isOptional([name]);
    const help = Object.assign(document.createElement("small"), { textContent: property.description ?? "" });
    $("fields").append(label, field, help);
  }
  for (const id of model.endpoints) {
    $("endpoints").append(Object.assign(document.createElement("a"), { href: `/models/${id}${location.hash}`, textContent: id }));
  }
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  if (key) $("key").value = key;
}

const dataUri = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

async function readInput() {
  const input = {};
  for (const [name, property] of Object.entries(model.schema.properties)) {
    const field = $(name);
    if (field.type === "file") {
      if (field.files.length) input[name] = await dataUri(field.files[0]);
    } else if (field.value !== "") input[name] = ["integer", "number"].includes(property.type) ? Number(field.value) : field.value;
  }
  return input;
}

async function call(url, options = {}) {
  const response = await fetch(url, { ...options, headers: { authorization: `Key ${$("key").value}`, "content-type": "application/json" } });
  const body = await response.json();
  if (!response.ok) throw new Error(typeof body.detail === "string" ? body.detail : body.detail.map((d) => `${d.loc.slice(1).join(".")}: ${d.msg}`).join("\n"));
  return body;
}

function showStatus(status) {
  const logs = status.logs ?? [];
  const step = /Step (\d+)\/(\d+)/.exec(logs.at(-1)?.message ?? "");
  $("progress").hidden = status.status !== "IN_PROGRESS";
  if (step) Object.assign($("progress"), { value: Number(step[1]), max: Number(step[2]) });
  else $("progress").removeAttribute("value");
  const words = { IN_QUEUE: `Waiting: ${status.queue_position} ahead`, IN_PROGRESS: logs.at(-1)?.message ?? "Started", COMPLETED: "Done" };
  $("status").textContent = words[status.status];
}

async function run(event) {
  event.preventDefault();
  $("run").disabled = true;
  $("video").hidden = $("output").hidden = true;
  try {
    const request = await call(`/queue/${model.id}`, { method: "POST", body: JSON.stringify(await readInput()) });
    $("cancel").hidden = false;
    $("cancel").onclick = () => call(request.cancel_url, { method: "PUT" }).catch(() => {});
    for (let status = request; ; status = await call(`${request.status_url}?logs=1`)) {
      showStatus(status);
      if (status.status === "COMPLETED") break;
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    const result = await call(request.response_url);
    $("video").src = result[model.result].url;
    $("output").textContent = JSON.stringify(result, null, 2);
    $("video").hidden = $("output").hidden = false;
  } catch (error) {
    $("status").textContent = error.message;
    $("progress").hidden = true;
  } finally {
    $("run").disabled = false;
    $("cancel").hidden = true;
  }
}

drawForm();
$("form").addEventListener("submit", run);

// The same call as code, in step with the form: Python, JavaScript and curl, as the official clients are used.
import { $, copyButton, h, tabs } from "./dom.js";
import { draft } from "./form.js";
import { model } from "./model.js";

const url = model.public_url;
const WRITERS = { python, javascript, curl };

/** Draw the code's tab once; `drawCode` keeps it in step. */
export function startCode() {
  tabs($("languages"));
  for (const language of Object.keys(WRITERS)) {
    const label = `The call in ${$(`tab-${language}`).textContent}`;
    $(`panel-${language}`).append(h("pre", { class: "code", tabIndex: 0, id: `code-${language}`, role: "region", "aria-label": label }));
  }
  $("language-row").append(copyButton(() => document.querySelector(".code:not([hidden] .code)").textContent, "Copy the code"));
  const id = encodeURIComponent(model.id);
  const links = [
    ["API page", `/models/${model.id}/api`],
    ["OpenAPI", `/api/openapi/queue/openapi.json?endpoint_id=${id}`],
    ["llms.txt", `/models/${model.id}/llms.txt`],
  ];
  $("code-links").append(...links.map(([text, href]) => h("a", { href }, text)));
}

export function drawCode() {
  let waits = false;
  const input = draft((field) => {
    waits = true;
    return `https://…/${field.pending().name}`;
  });
  for (const [language, write] of Object.entries(WRITERS)) $(`code-${language}`).textContent = write(input);
  $("code-note").hidden = !waits;
}

const json = (value, indent) => JSON.stringify(value, null, 2).replaceAll("\n", `\n${" ".repeat(indent)}`);

function python(input) {
  const lines = Object.entries(input).map(([name, value]) => `        ${JSON.stringify(name)}: ${pythonValue(value)},`);
  return `# pip install fal-client
# Run it with:  svd-serve connect --url ${url} --key "$FAL_KEY" -- python program.py
import fal_client

result = fal_client.subscribe(
    ${JSON.stringify(model.id)},
    arguments={
${lines.join("\n")}
    },
    with_logs=True,
)
print(result["${model.result}"]["url"])
`;
}

function pythonValue(value) {
  if (typeof value === "boolean") return value ? "True" : "False";
  return typeof value === "object" ? JSON.stringify(value).replaceAll(",", ", ").replaceAll(":", ": ") : JSON.stringify(value);
}

function javascript(input) {
  return `// npm install @fal-ai/client
import { fal } from "@fal-ai/client";

fal.config({
  credentials: process.env.FAL_KEY,
  proxyUrl: { url: "${url}/api/fal/proxy", when: "always" },
});

const { data } = await fal.subscribe(${JSON.stringify(model.id)}, {
  input: ${json(input, 2)},
  logs: true,
});
console.log(data.${model.result}.url);
`;
}

function curl(input) {
  const body = json(input, 2).replaceAll("'", "'\\''");
  return `curl --request POST \\
  --url ${url}/${model.id} \\
  --header "Authorization: Key $FAL_KEY" \\
  --header "Content-Type: application/json" \\
  --data '${body}'
`;
}

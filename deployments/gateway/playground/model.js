// What the service wrote into the page: the endpoint with its schema, or, for the operator, all endpoints.
export const model = JSON.parse(document.getElementById("model").textContent);

const properties = model.schema?.properties ?? {};
for (const [name, property] of Object.entries(properties)) properties[name] = settled(property);

/** A property as what it is when it is something: not null, and not elsewhere in the schema if that is a list of words. */
function settled(property) {
  const { anyOf, ...own } = property;
  const kinds = (anyOf ?? [property]).filter(({ type }) => type !== "null");
  if (kinds.length > 1) return { ...own, anyOf: kinds };
  const named = model.schema.$defs?.[kinds[0].$ref?.split("/").at(-1)];
  return { ...(named?.enum && named), ...kinds[0], ...own };
}

/** How wide for its height the clip of a picture becomes: the nearest of the sizes, as the service takes it. */
export function nearestSize(width, height) {
  const ratio = width / height;
  const distance = ([w, h]) => Math.max(w / h / ratio, (ratio * h) / w);
  return model.sizes.reduce((best, size) => (distance(size) < distance(best) ? size : best), model.sizes[0]);
}

// What the service wrote into the page: the endpoint with its schema, or, for the operator, all endpoints.
export const model = JSON.parse(document.getElementById("model").textContent);

/** How wide for its height the clip of a picture becomes: the nearest of the sizes, as the service takes it. */
export function nearestSize(width, height) {
  const ratio = width / height;
  const distance = ([w, h]) => Math.max(w / h / ratio, (ratio * h) / w);
  return model.sizes.reduce((best, size) => (distance(size) < distance(best) ? size : best), model.sizes[0]);
}

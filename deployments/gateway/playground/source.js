// Where a picture, mask or archive comes from: an address, or a file that is uploaded once, when its address is needed.
import { upload } from "./api.js";
import { here } from "./dom.js";
import { model } from "./model.js";

export class Source {
  #wanted = new AbortController();

  /** A file of the person's own, or of ours to try; or an address. */
  constructor({ file = null, url = null, example = null }) {
    Object.assign(this, { file, url, example, problem: null, uploading: null, onChange: () => {} });
    this.shown = file ? URL.createObjectURL(file) : here(url, model.public_url);
  }

  get name() {
    return this.file?.name ?? fileName(this.url);
  }

  /** The address that a request can name. What failed is tried again by the next call. */
  async address(onProgress) {
    if (this.url) return this.url;
    this.uploading ??= this.#upload(onProgress);
    return this.uploading;
  }

  async #upload(onProgress) {
    this.problem = null;
    try {
      this.url = await upload(this.file, (url) => here(url, model.public_url), onProgress, this.#wanted.signal);
      return this.url;
    } catch (problem) {
      this.problem = problem;
      throw problem;
    } finally {
      this.uploading = null;
      this.onChange();
    }
  }

  /** Another one came in its place: what is on its way need not arrive, and nobody wants to hear of it. */
  release() {
    this.onChange = () => {};
    this.#wanted.abort();
    if (this.file) URL.revokeObjectURL(this.shown);
  }
}

/** What a file is called, as far as its address says it. */
export function fileName(url) {
  if (url.startsWith("data:")) return "A file within the request";
  const last = url.split(/[?#]/)[0].split("/").at(-1);
  try {
    return decodeURIComponent(last) || url;
  } catch {
    return last; // a name may have a percent sign of its own
  }
}

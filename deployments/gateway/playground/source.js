// Where a picture, mask or archive comes from: an address, or a file that is uploaded once, when its address is needed.
import { upload } from "./api.js";
import { here } from "./dom.js";
import { model } from "./model.js";

export class Source {
  /** A file of the person's own, or of ours to try; or an address. */
  constructor({ file = null, url = null, example = null }) {
    Object.assign(this, { file, url, example, problem: null, uploading: null, onChange: () => {} });
    this.shown = file ? URL.createObjectURL(file) : here(url, model.public_url);
  }

  get name() {
    return this.file?.name ?? this.url;
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
      this.url = await upload(this.file, (url) => here(url, model.public_url), onProgress);
      return this.url;
    } catch (problem) {
      this.problem = problem;
      throw problem;
    } finally {
      this.uploading = null;
      this.onChange();
    }
  }

  release() {
    if (this.file) URL.revokeObjectURL(this.shown);
  }
}

// The documents panel: what the store holds, uploads with their progress, and taking documents out.

import { ApiError, json, request } from "./api.js";
import { element } from "./show.js";

const POLL_MS = 700;

export class Documents {
  constructor(root, tell) {
    this.root = root;
    this.tell = tell;
    const drop = root.querySelector("#drop");
    const files = root.querySelector("#files");
    files.addEventListener("change", async () => {
      await this.upload([...files.files]);
      files.value = "";
    });
    for (const name of ["dragover", "drop", "dragleave"]) {
      drop.addEventListener(name, (event) => {
        event.preventDefault();
        drop.classList.toggle("over", name === "dragover");
        if (name === "drop") this.upload([...event.dataTransfer.files]);
      });
    }
  }

  async upload(files) {
    const uploads = this.root.querySelector("#uploads");
    uploads.replaceChildren();
    for (const file of files) {
      const item = element("li", {}, element("span", { textContent: `${file.name}: sending` }));
      uploads.append(item);
      const body = new FormData();
      body.append("file", file);
      try {
        await request("v1/documents", { method: "POST", body });
        item.remove();
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        item.replaceChildren(
          element("span", { textContent: file.name }),
          element("span", { className: "failed", textContent: error.message }),
        );
      }
      await this.list();
    }
  }

  /** List the documents; again while some are on their way into the store. */
  async list() {
    clearTimeout(this.timer);
    if (this.root.hidden) return;
    try {
      const { data, indexing } = await json("v1/documents");
      const items = data.map((one) => this.item(one, indexing));
      this.root.querySelector("#document-list").replaceChildren(...items);
      if (data.some((one) => ["waiting", "indexing"].includes(one.state))) {
        this.timer = setTimeout(() => this.list(), POLL_MS);
      }
    } catch (error) {
      this.tell(error.message);
    }
  }

  item(one, indexing) {
    const name = element("span", { textContent: one.name });
    let state = `${one.passages} passages`;
    if (one.state === "waiting") state = "waiting";
    if (one.state === "indexing") state = `indexing, ${indexing?.embedded_passages ?? 0} passages`;
    const remove = element("button", { className: "small", type: "button", textContent: "Remove" });
    remove.setAttribute("aria-label", `Remove ${one.name}`);
    remove.addEventListener("click", async () => {
      try {
        await request(`v1/documents/${one.id}`, { method: "DELETE" });
      } catch (error) {
        this.tell(error.message);
      }
      await this.list();
    });
    const item = element("li", {}, name, element("span", { className: "quiet", textContent: state }), remove);
    if (one.error) item.append(element("span", { className: "failed", textContent: one.error }));
    return item;
  }
}

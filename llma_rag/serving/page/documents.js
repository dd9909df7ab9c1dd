// The documents panel: what the store holds, uploads with their progress, and taking documents out.

import { ApiError, json, request, upload } from "./api.js";
import { openPanel } from "./panels.js";
import { button, counted, element } from "./show.js";

const POLL_MS = 700;

export class Documents {
  /** `attempt(action)` runs an action of the user's and tells what goes wrong, `tell(trouble)` tells it of other work; `open(document)` shows one. */
  constructor(root, attempt, tell, open) {
    this.root = root;
    this.attempt = attempt;
    this.tell = tell;
    this.open = open;
    this.sending = Promise.resolve();
    this.asked = 0; // lists so far
    this.isChanging = false;
    const files = root.querySelector("#files");
    files.addEventListener("change", () => {
      this.send([...files.files]);
      files.value = "";
    });
    this.takeDrops();
  }

  /** Files may be dropped anywhere; elsewhere the browser would leave the page for them. */
  takeDrops() {
    const dropping = (is) => document.body.classList.toggle("dropping", is);
    addEventListener("dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      dropping(true);
    });
    addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) dropping(false);
    });
    addEventListener("drop", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      dropping(false);
      openPanel(this.root);
      const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
      const folders = items.filter((item) => item.webkitGetAsEntry()?.isDirectory).map((item) => item.getAsFile()?.name);
      this.send([...event.dataTransfer.files], folders);
    });
  }

  /** Upload files one after another; those already on their way come first. */
  send(files, folders = []) {
    const items = files.map((file) => {
      const item = element("li", {}, element("span", { className: "name", textContent: file.name }));
      const bar = element("progress", { max: 1, value: 0 });
      bar.setAttribute("aria-label", `Sending ${file.name}`);
      item.append(element("span", { className: "quiet", textContent: "waiting" }), bar);
      return item;
    });
    this.root.querySelector("#uploads").append(...items);
    for (const [number, file] of files.entries()) {
      this.sending = this.sending.then(() => this.sendOne(file, items[number], folders.includes(file.name)));
    }
  }

  async sendOne(file, item, isFolder) {
    const [, state, bar] = item.children;
    state.textContent = "sending";
    try {
      if (isFolder) throw new ApiError(0, "This is a folder; drop the documents in it.");
      this.checkSize(file);
      await upload("v1/documents", file, (share) => (bar.value = share));
      item.remove();
    } catch (error) {
      state.remove();
      const away = button("Dismiss", () => item.remove(), { className: "link", label: `Dismiss ${file.name}` });
      bar.replaceWith(away, element("span", { className: "failed", textContent: error.message }));
    }
    await this.list();
  }

  checkSize(file) {
    if (this.limits && file.size > this.limits.max_bytes) {
      const megabytes = Math.round(this.limits.max_bytes / 2 ** 20);
      throw new ApiError(0, `It has more than ${megabytes} MiB, the most that are read; split it first.`);
    }
  }

  /** List the documents; again while some are on their way into the store. */
  async list() {
    clearTimeout(this.timer);
    if (this.root.hidden) return;
    this.asked += 1;
    const asked = this.asked;
    try {
      const { data, indexing, limits } = await json("v1/documents");
      if (asked !== this.asked) return; // this is old
      this.limits = limits;
      this.root.querySelector("#files").accept = limits.suffixes.join();
      this.show(data, indexing);
      this.isChanging = data.some((one) => ["waiting", "indexing"].includes(one.state));
    } catch (error) {
      this.tell(error.message);
    }
    if (this.isChanging) this.timer = setTimeout(() => this.list(), POLL_MS);
  }

  /** Show the documents; the rows of those that were there stay, with their focus. */
  show(documents, indexing) {
    const passages = documents.reduce((sum, one) => sum + one.passages, 0);
    const holdings = this.root.querySelector("#holdings");
    const held = documents.filter((one) => one.passages).length;
    holdings.textContent = `${counted(held, "document")}, ${counted(passages, "passage")}`;
    const list = this.root.querySelector("#document-list");
    const rows = new Map([...list.children].map((row) => [row.dataset.id, row]));
    const shown = documents.map((one) => {
      const row = rows.get(one.id) ?? this.row(one);
      showState(row, one, indexing);
      return row;
    });
    for (const row of rows.values()) if (!shown.includes(row)) row.remove();
    shown.forEach((row, place) => {
      if (list.children[place] !== row) list.insertBefore(row, list.children[place] ?? null);
    });
  }

  row(one) {
    const show = () => this.attempt(() => this.open({ document: one.id, source: one.name }));
    const remove = () => this.attempt(() => this.remove(one));
    return element(
      "li",
      { dataset: { id: one.id } },
      button(one.name, show, { className: "plain name", label: `Open ${one.name}` }),
      element("span", { className: "quiet" }),
      button("Remove", remove, { className: "link", label: `Remove ${one.name}` }),
      element("span", { className: "failed" }),
    );
  }

  async remove(one) {
    const lost = one.uploaded ? "Its file on the server is deleted." : "Its file stays where it is.";
    if (!confirm(`Take ${one.name} out of the documents? ${lost}`)) return;
    await request(`v1/documents/${one.id}`, { method: "DELETE" });
    await this.list();
    this.root.focus();
  }
}

function showState(row, one, indexing) {
  const [, state, , failure] = row.children;
  const states = {
    waiting: "waiting to be indexed",
    indexing: `indexing: ${counted(indexing?.embedded_passages ?? 0, "passage")} so far`,
    indexed: counted(one.passages, "passage"),
    failed: "not indexed",
  };
  state.textContent = states[one.state];
  failure.textContent = one.error ?? "";
}

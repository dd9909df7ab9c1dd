// The conversations panel: choose, rename and delete.

import { json, request, send } from "./api.js";
import { button, element } from "./show.js";

export class Conversations {
  /** `attempt(action)` runs an action and tells what goes wrong; `choose(id)` shows a conversation, or a new one for null. */
  constructor(root, attempt, choose) {
    this.root = root;
    this.attempt = attempt;
    this.choose = choose;
    this.current = null;
    this.isRenaming = false;
    root.querySelector("#new-conversation").addEventListener("click", () => attempt(() => choose(null)));
  }

  async list() {
    if (this.root.hidden || this.isRenaming) return;
    const { data } = await json("v1/conversations");
    if (this.isRenaming) return;
    const items = data.filter((one) => one.turns).map((one) => this.item(one));
    this.root.querySelector("#conversation-list").replaceChildren(...items);
  }

  item(one) {
    const isCurrent = one.id === this.current;
    const className = isCurrent ? "plain name current" : "plain name";
    const title = button(one.title, () => this.attempt(() => this.choose(one.id)), { className });
    if (isCurrent) title.setAttribute("aria-current", "true");
    const item = element("li", {}, title);
    const rename = () => this.rename(one, item);
    const remove = () => this.attempt(() => this.remove(one));
    item.append(
      button("Rename", rename, { className: "link", label: `Rename ${one.title}` }),
      button("Delete", remove, { className: "link", label: `Delete ${one.title}` }),
    );
    return item;
  }

  rename(one, item) {
    this.isRenaming = true;
    const name = element("input", { value: one.title, maxLength: 1000 });
    name.setAttribute("aria-label", "New title; Enter keeps it, Escape the old one");
    const finish = (isKept) => this.attempt(async () => {
      if (!this.isRenaming) return; // the field goes, and its blur comes, once it is finished
      this.isRenaming = false;
      const title = name.value.trim();
      if (isKept && title) await send(pathOf(one), "PATCH", { title });
      await this.list();
    });
    name.addEventListener("blur", () => finish(false));
    name.addEventListener("keydown", async (event) => {
      if (!["Enter", "Escape"].includes(event.key) || event.isComposing) return;
      event.preventDefault();
      await finish(event.key === "Enter");
      this.root.focus();
    });
    item.replaceChildren(name);
    name.select();
  }

  async remove(one) {
    if (!confirm(`Delete the conversation "${one.title}"?`)) return;
    await request(pathOf(one), { method: "DELETE" });
    if (one.id === this.current) await this.choose(null);
    else {
      await this.list();
      this.root.focus();
    }
  }
}

function pathOf(one) {
  return `v1/conversations/${encodeURIComponent(one.id)}`;
}

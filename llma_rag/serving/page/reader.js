// The document panel: the whole text, scrolled to the words that were copied.

import { json } from "./api.js";
import { colour, element } from "./show.js";

export class Reader {
  constructor(root, tell) {
    this.root = root;
    this.tell = tell;
    root.querySelector("#close-reader").addEventListener("click", () => this.close());
    root.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.close();
    });
  }

  /** Show a source's document and mark characters of the passage in it. */
  async open(source, span) {
    this.cameFrom = document.activeElement;
    try {
      const { pages } = await json(`v1/documents/${encodeURIComponent(source.document)}/text`);
      this.show(source, pages, span);
    } catch (error) {
      this.tell(error.message);
    }
  }

  show(source, pages, span) {
    this.root.querySelector("#reader-name").textContent = source.source;
    const body = this.root.querySelector("#reader-text");
    body.replaceChildren();
    const begin = source.start + span.source_start;
    const end = source.start + span.source_end;
    for (const page of pages) {
      if (page.page) body.append(element("h3", { textContent: `Page ${page.page}` }));
      const part = element("div");
      const points = Array.from(page.text);
      const isThis = (page.page ?? null) === (source.page ?? null);
      if (isThis && points.slice(source.start, source.end).join("") === source.text) {
        const mark = element("mark", { className: colour(source.number), textContent: points.slice(begin, end).join("") });
        part.append(points.slice(0, begin).join(""), mark, points.slice(end).join(""));
      } else part.append(page.text);
      body.append(part);
    }
    this.root.hidden = false;
    this.root.focus({ preventScroll: true });
    const mark = body.querySelector("mark");
    if (mark) mark.scrollIntoView({ block: "center" });
    else this.tell("The document has changed since; the words are no longer at their place.");
  }

  close() {
    this.root.hidden = true;
    this.cameFrom?.focus();
  }
}

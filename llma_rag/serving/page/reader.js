// The document panel: the whole text, scrolled to the words that were copied.

import { json } from "./api.js";
import { closePanel, openPanel } from "./panels.js";
import { colour, element } from "./show.js";

export class Reader {
  constructor(root) {
    this.root = root;
    root.querySelector("#close-reader").addEventListener("click", () => closePanel(root));
  }

  /** Show a source's document and mark characters of the passage in it. */
  async open(source, span) {
    const { pages } = await json(`v1/documents/${encodeURIComponent(source.document)}/text`);
    this.root.querySelector("#reader-name").textContent = source.source;
    const body = this.root.querySelector("#reader-text");
    body.replaceChildren();
    let mark = null;
    for (const page of pages) {
      if (page.page) body.append(element("h3", { textContent: `Page ${page.page}` }));
      const points = Array.from(page.text);
      const start = mark ? null : passageStart(source, page, points);
      if (start === null) {
        body.append(element("div", { textContent: page.text }));
        continue;
      }
      const [begin, end] = [start + span.source_start, start + span.source_end];
      mark = element("mark", { className: colour(source.number), textContent: points.slice(begin, end).join("") });
      body.append(element("div", {}, points.slice(0, begin).join(""), mark, points.slice(end).join("")));
    }
    this.root.querySelector("#reader-note").hidden = mark !== null;
    openPanel(this.root);
    if (mark) mark.scrollIntoView({ block: "center" });
    else this.root.scrollTop = 0;
  }
}

/** Where a passage begins in a page, if it is still there. */
function passageStart(source, page, points) {
  if ((page.page ?? null) !== (source.page ?? null)) return null;
  if (page.text === source.text) return 0; // of some documents only the passages are kept
  return points.slice(source.start, source.end).join("") === source.text ? source.start : null;
}

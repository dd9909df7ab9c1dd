// The document panel: the whole text, scrolled to the words that were copied.

import { ApiError, json } from "./api.js";
import { closePanel, openPanel } from "./panels.js";
import { colour, element } from "./show.js";

export class Reader {
  constructor(root) {
    this.root = root;
    this.asked = 0; // documents so far
    root.querySelector("#close-reader").addEventListener("click", () => closePanel(root));
  }

  /** Show a document; of a source, mark characters `span` of its passage. */
  async open(source, span = null) {
    this.asked += 1;
    const asked = this.asked;
    const pages = await pagesOf(source);
    if (asked !== this.asked) return; // another was chosen meanwhile
    this.root.querySelector("#reader-name").textContent = source.source;
    const body = this.root.querySelector("#reader-text");
    body.replaceChildren();
    let mark = null;
    for (const page of pages) {
      if (page.page) body.append(element("h3", { textContent: `Page ${page.page}` }));
      const start = mark || !span ? null : passageStart(source, page);
      if (start === null) {
        body.append(element("div", { textContent: page.text }));
        continue;
      }
      const begin = unitsAt(page.text, start + span.source_start);
      const end = unitsAt(page.text, start + span.source_end);
      mark = element("mark", { className: colour(source), textContent: page.text.slice(begin, end) });
      body.append(element("div", {}, page.text.slice(0, begin), mark, page.text.slice(end)));
    }
    this.root.querySelector("#reader-note").hidden = !span || mark !== null;
    openPanel(this.root);
    if (mark) mark.scrollIntoView({ block: "center" });
    else this.root.scrollTop = 0;
  }
}

async function pagesOf(source) {
  try {
    return (await json(`v1/documents/${encodeURIComponent(source.document)}/text`)).pages;
  } catch (error) {
    if (error.status !== 404) throw error;
    throw new ApiError(404, `${source.source} is no longer among the documents.`);
  }
}

/** At which character of a page a passage begins, if it is still there. */
function passageStart(source, page) {
  if ((page.page ?? null) !== (source.page ?? null)) return null;
  if (page.text === source.text) return 0; // of some documents only the passages are kept
  return page.text.startsWith(source.text, unitsAt(page.text, source.start)) ? source.start : null;
}

/** How many units of UTF-16 a number of characters takes; the server counts characters. */
function unitsAt(text, characters) {
  let units = 0;
  for (let left = characters; left > 0 && units < text.length; left -= 1) units += text.codePointAt(units) > 0xffff ? 2 : 1;
  return units;
}

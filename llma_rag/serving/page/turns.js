// One question with its answer, on its way or complete.

import { counted, element, figureList, showMarked, sourceList } from "./show.js";

export class ShownTurn {
  /** `open(source, span)` opens a document. */
  constructor(turn, open) {
    this.turn = turn;
    this.open = open;
    this.reasoning = element("p", { className: "reasoning" });
    this.answer = element("div", { className: "answer" });
    this.sources = element("div");
    this.figures = element("div");
    this.note = element("p", { className: "quiet" });
    this.root = element("section", { className: "turn" });
    const asked = element("h2", { className: "asked", textContent: turn.question });
    this.root.append(asked, this.reasoning, this.answer, this.note, this.sources, this.figures);
    this.update();
  }

  update() {
    const { answer, reasoning, spans, sources, figures, firstToken, leftOut } = this.turn;
    this.reasoning.textContent = reasoning ?? "";
    showMarked(this.answer, answer, spans, sources, this.open);
    if (this.shownSources !== sources) this.sources.replaceChildren(sourceList(sources, this.open));
    this.shownSources = sources;
    this.figures.replaceChildren(figureList(figures, firstToken ?? figures?.queued_s + figures?.prefill_s));
    const notes = [];
    if (figures?.finish_reason === "length") notes.push("Cut off: the answer has reached the most tokens it may have.");
    if (leftOut) notes.push(`The first ${counted(leftOut, "turn")} no longer fitted before the question.`);
    this.note.textContent = notes.join(" ");
  }

  end(words) {
    this.note.textContent = words;
  }
}

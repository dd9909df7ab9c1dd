// One question with its answer, on its way or complete.

import { counted, element, figureList, showMarked, sourceList } from "./show.js";

export function newTurn(question) {
  return { question, answer: "", reasoning: "", spans: [], sources: [], figures: null, left_out_turns: 0 };
}

/** Take an event of the answer into its turn. */
export function receive(turn, event) {
  const delta = event.choices[0]?.delta ?? {};
  turn.answer += delta.content ?? "";
  turn.reasoning += delta.reasoning_content ?? "";
  const told = event.llma_rag ?? {};
  if (told.sources && !turn.sources.length) turn.sources = told.sources;
  if (told.left_out_turns) turn.left_out_turns = told.left_out_turns;
  if (told.figures) turn.figures = told.figures;
  if (told.spans) turn.spans = told.figures ? told.spans : withNewer(turn.spans, told.spans);
}

/** Spans with those that are new or have grown. */
function withNewer(spans, newer) {
  const starts = new Set(newer.map((span) => span.start));
  return [...spans.filter((span) => !starts.has(span.start)), ...newer].sort((one, other) => one.start - other.start);
}

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
    const { answer, reasoning, spans, sources, figures, left_out_turns } = this.turn;
    this.reasoning.textContent = reasoning ?? ""; // turns that are kept have none
    showMarked(this.answer, answer, spans, sources, this.open);
    if (this.shownSources !== sources) this.sources.replaceChildren(sourceList(sources, this.open));
    this.shownSources = sources;
    this.figures.replaceChildren(figureList(figures));
    const notes = [];
    if (figures?.finish_reason === "length") notes.push("Cut off: the answer has reached the most tokens it may have.");
    if (left_out_turns) notes.push(`The first ${counted(left_out_turns, "turn")} no longer fitted before the question.`);
    this.note.textContent = notes.join(" ");
  }

  end(words) {
    this.note.textContent = words;
  }
}

// The same question answered with and without references, one after the other, so that neither slows the other down.

import { element, figureList, marked, sourceList } from "./show.js";

/** Run both; `answer(draft, turn, update)` follows one answer into a turn. */
export async function race(parent, question, answer, open) {
  const lanes = [new Lane("With references", true, open), new Lane("Without", false, open)];
  const verdict = element("p", { className: "verdict" });
  verdict.setAttribute("role", "status");
  const grid = element("div", { className: "lanes" }, ...lanes.map((lane) => lane.root));
  const root = element("section", { className: "turn race" });
  root.append(element("p", { className: "asked", textContent: question }), grid, verdict);
  parent.append(root);
  root.scrollIntoView({ block: "nearest" });
  for (const lane of lanes) await lane.run(answer);
  const [fast, plain] = lanes.map((lane) => lane.turn);
  if (!fast.figures?.decode_s || !plain.figures?.decode_s) {
    verdict.textContent = "The documents do not answer this; there is nothing to race.";
    return;
  }
  const ratio = plain.figures.decode_s / fast.figures.decode_s;
  const same = fast.answer === plain.answer ? "the texts are equal" : "THE TEXTS DIFFER";
  verdict.textContent =
    `${ratio.toFixed(1)} times as fast: ${fast.figures.forward_passes} passes instead of ` +
    `${plain.figures.forward_passes}; ${same}.`;
  verdict.dataset.same = String(fast.answer === plain.answer);
}

class Lane {
  constructor(name, draft, open) {
    this.draft = draft;
    this.open = open;
    this.turn = { answer: "", reasoning: "", spans: [], sources: [], figures: null };
    this.clock = element("p", { className: "clock", textContent: "0.0 s" });
    this.text = element("div", { className: "answer" });
    this.rest = element("div");
    this.root = element("div", { className: "lane" }, element("h2", { textContent: name }), this.clock, this.text, this.rest);
  }

  async run(answer) {
    let firstToken = null;
    const tick = () => {
      const seconds = firstToken === null ? 0 : (performance.now() - firstToken) / 1000;
      this.clock.textContent = `${seconds.toFixed(1)} s`;
    };
    const timer = setInterval(tick, 100);
    try {
      await answer(this.draft, this.turn, () => {
        if (this.turn.answer) firstToken ??= performance.now();
        this.update();
      });
    } finally {
      clearInterval(timer);
    }
    if (this.turn.figures?.decode_s) this.clock.textContent = `${this.turn.figures.decode_s.toFixed(2)} s`;
  }

  update() {
    const { answer, spans, sources, figures, firstToken } = this.turn;
    this.text.replaceChildren(marked(answer, spans, sources, this.open));
    this.rest.replaceChildren(sourceList(sources, this.open), figureList(figures, firstToken));
  }
}

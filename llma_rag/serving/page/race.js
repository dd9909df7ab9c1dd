// The same question answered with references and without, one after the other, so that neither slows the other down.

import { counted, element, figureList, showMarked, sourceList } from "./show.js";
import { newTurn } from "./turns.js";

/** Run both; `answer(draft, turn, update)` follows one answer into a turn. */
export async function race(parent, question, answer, open) {
  const lanes = [new Lane("With references", true, open), new Lane("Without references", false, open)];
  const verdict = element("p", { className: "verdict" });
  const grid = element("div", { className: "lanes" }, ...lanes.map((lane) => lane.root));
  const sources = element("div");
  const root = element("section", { className: "turn race" });
  root.append(
    element("h2", { className: "asked", textContent: question }),
    grid,
    verdict,
    sources,
  );
  parent.append(root);
  root.scrollIntoView({ block: "nearest" });
  try {
    for (const lane of lanes) await lane.run(answer);
  } catch (error) {
    if (!lanes[0].isBegun) root.remove(); // there is nothing to look at
    else verdict.textContent = "The race was broken off.";
    throw error;
  }
  const [fast, plain] = lanes.map((lane) => lane.turn);
  if (!fast.figures.forward_passes || !plain.figures.forward_passes) {
    grid.remove();
    verdict.textContent = "The documents do not answer this, so there is nothing to race.";
    return verdict.textContent;
  }
  const longest = Math.max(fast.figures.decode_s, plain.figures.decode_s);
  for (const lane of lanes) lane.finish(longest);
  const ratio = fast.figures.decode_s ? plain.figures.decode_s / fast.figures.decode_s : 1;
  const isSame = fast.answer === plain.answer && fast.reasoning === plain.reasoning;
  verdict.dataset.same = String(isSame);
  verdict.append(
    element("strong", { textContent: `${ratio.toFixed(1)} times as fast` }),
    `${counted(fast.figures.forward_passes, "forward pass", "forward passes")} instead of ` +
      `${plain.figures.forward_passes}; ${isSame ? "the texts are equal" : "THE TEXTS DIFFER"}. `,
    element("span", {
      className: "quiet",
      textContent: "One ran after the other; the clocks start with the first token. A race is not kept in the conversation.",
    }),
  );
  sources.append(sourceList(fast.sources, open));
  return verdict.textContent;
}

class Lane {
  constructor(name, draft, open) {
    this.draft = draft;
    this.open = open;
    this.turn = newTurn("");
    this.clock = element("span", { className: "clock", textContent: "0.00 s" });
    this.words = element("span", { className: "quiet" });
    this.bar = element("div");
    this.reasoning = element("p", { className: "reasoning" });
    this.text = element("div", { className: "answer" });
    this.figures = element("div");
    this.root = element(
      "section",
      { className: "lane" },
      element("h3", { textContent: name }),
      element("div", { className: "counters" }, this.clock, this.words),
      element("div", { className: "track" }, this.bar),
      this.reasoning,
      this.text,
      this.figures,
    );
  }

  async run(answer) {
    let firstToken = null;
    const timer = setInterval(() => {
      if (firstToken !== null) this.clock.textContent = inSeconds((performance.now() - firstToken) / 1000);
    }, 50);
    try {
      await answer(this.draft, this.turn, () => {
        if (this.isBegun) firstToken ??= performance.now();
        this.update();
      });
    } finally {
      clearInterval(timer);
    }
    if (this.turn.figures.forward_passes) this.clock.textContent = inSeconds(this.turn.figures.decode_s);
  }

  get isBegun() {
    return Boolean(this.turn.answer || this.turn.reasoning);
  }

  update() {
    const { answer, reasoning, spans, sources, figures } = this.turn;
    this.reasoning.textContent = reasoning;
    showMarked(this.text, answer, spans, sources, this.open);
    this.words.textContent = counted(`${reasoning} ${answer}`.split(/\s+/).filter(Boolean).length, "word");
    this.figures.replaceChildren(figureList(figures, { withPrompt: false }));
  }

  finish(longest) {
    this.bar.style.width = `${longest ? (100 * this.turn.figures.decode_s) / longest : 100}%`;
  }
}

function inSeconds(seconds) {
  return `${seconds.toFixed(2)} s`;
}

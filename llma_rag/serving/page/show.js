// Elements for answers. Whatever comes from documents or the model goes through `textContent`: it is never HTML.

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  const { dataset, ...rest } = properties;
  Object.assign(made, rest);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

/** A button in words; `label` says more to screen readers. */
export function button(words, action, { label, className = "small" } = {}) {
  const made = element("button", { type: "button", className, textContent: words });
  if (label) made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
}

export function counted(number, noun, plural = `${noun}s`) {
  return `${number} ${number === 1 ? noun : plural}`;
}

const COLOURS = 5;

/** The class of a source's colour, by its number. */
export function colour(source) {
  return `source-${(source.number - 1) % COLOURS}`;
}

export function place(source) {
  return [source.source, within(source)].filter(Boolean).join(", ");
}

function within(source) {
  const page = source.page ? `page ${source.page}` : "";
  return [page, (source.headings ?? []).join(" > ")].filter(Boolean).join(", ");
}

/** Show a text with its copied words marked; `open(source, span)` is called where one of them is chosen. */
export function showMarked(parent, text, spans, sources, open) {
  const made = markedNodes(text, spans, sources, open);
  let kept = 0; // what is there already stays, with its focus
  while (kept < made.length && parent.childNodes[kept]?.isEqualNode(made[kept])) kept += 1;
  while (parent.childNodes.length > kept) parent.lastChild.remove();
  parent.append(...made.slice(kept));
}

function markedNodes(text, spans, sources, open) {
  const points = Array.from(text); // the server counts characters, not units of UTF-16
  const nodes = [];
  let reached = 0;
  const plain = (end) => {
    if (end > reached) nodes.push(document.createTextNode(points.slice(reached, end).join("")));
  };
  for (const span of spans) {
    const begin = Math.max(span.start, reached);
    const source = sources.find((one) => one.number === span.number);
    if (begin >= span.end || !source) continue;
    plain(begin);
    const words = points.slice(begin, span.end).join("");
    nodes.push(mark(words, { ...span, start: begin, source_start: span.source_start + begin - span.start }, source, open));
    reached = span.end;
  }
  plain(points.length);
  return nodes;
}

function mark(words, span, source, open) {
  const made = element("mark", {
    className: colour(source),
    title: `[${span.number}] ${place(source)}`,
    tabIndex: 0,
    textContent: words,
    dataset: { start: span.start, end: span.end, number: span.number, sourceStart: span.source_start },
  });
  made.setAttribute("role", "button");
  made.setAttribute("aria-label", `${words} (copied from ${place(source)})`);
  made.addEventListener("click", () => {
    if (getSelection().isCollapsed) open(source, span); // else words were selected to be copied
  });
  made.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    open(source, span);
  });
  return made;
}

export function sourceList(sources, open) {
  const items = sources.map((source) => {
    const whole = { source_start: 0, source_end: Array.from(source.text).length };
    const name = button(source.source, () => open(source, whole), { className: "plain name", label: `Open ${place(source)}` });
    const number = element("span", { className: `number ${colour(source)}`, textContent: source.number });
    const score = source.similarity == null ? "" : `similarity ${source.similarity.toFixed(2)}`;
    const cell = element("div", {}, name, element("span", { className: "place", textContent: within(source) }));
    return element("li", {}, number, cell, element("span", { className: "quiet", textContent: score }));
  });
  const list = element("ul", { className: "sources" }, ...items);
  list.setAttribute("aria-label", "Sources");
  return list;
}

/** The figures of an answer; the prompt counts only where `withPrompt`. */
export function figureList(figures, { withPrompt = true } = {}) {
  if (!figures?.forward_passes) return ""; // the documents do not answer
  const rate = figures.decode_s ? (figures.completion_tokens / figures.decode_s).toFixed(1) : "–";
  const shown = [
    [figures.tokens_per_pass.toFixed(2), "tokens per pass"],
    [rate, "tokens per second"],
    [`${Math.round(100 * figures.copied_coverage)} %`, "copied"],
  ];
  if (withPrompt) shown.splice(2, 0, [`${(figures.queued_s + figures.prefill_s).toFixed(2)} s`, "to the first token"]);
  const parts = shown.map(([value, name]) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value })),
  );
  return element("dl", { className: "figures" }, ...parts);
}

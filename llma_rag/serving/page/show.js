// Elements for answers. Whatever comes from documents or the model goes through `textContent`: it is never HTML.

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  const { dataset, ...rest } = properties;
  Object.assign(made, rest);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

export function colour(number) {
  return `source-${(number - 1) % 5}`;
}

export function place(source) {
  const page = source.page ? `, page ${source.page}` : "";
  const headings = source.headings?.length ? `, ${source.headings.join(" > ")}` : "";
  return `${source.source}${page}${headings}`;
}

/** Text with its copied words marked; `open(source, span)` is called where one of them is chosen. */
export function marked(text, spans, sources, open) {
  const points = Array.from(text); // the server counts characters, not units of UTF-16
  const fragment = document.createDocumentFragment();
  let reached = 0;
  for (const span of spans) {
    const begin = Math.max(span.start, reached);
    const source = sources.find((one) => one.number === span.number);
    if (begin >= span.end || !source) continue;
    fragment.append(points.slice(reached, begin).join(""));
    const mark = element("mark", {
      className: colour(span.number),
      title: `[${span.number}] ${place(source)}`,
      tabIndex: 0,
      textContent: points.slice(begin, span.end).join(""),
      dataset: { start: begin, end: span.end, number: span.number },
    });
    mark.setAttribute("role", "button");
    mark.setAttribute("aria-label", `${mark.textContent} (copied from ${place(source)})`);
    const chosen = () => open(source, { ...span, source_start: span.source_start + begin - span.start });
    mark.addEventListener("click", chosen);
    mark.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        chosen();
      }
    });
    fragment.append(mark);
    reached = span.end;
  }
  fragment.append(points.slice(reached).join(""));
  return fragment;
}

export function sourceList(sources, open) {
  const items = sources.map((source) => {
    const whole = { source_start: 0, source_end: Array.from(source.text).length };
    const button = element("button", { className: "plain", type: "button", textContent: place(source) });
    button.addEventListener("click", () => open(source, whole));
    const score = source.similarity == null ? "" : `, similarity ${source.similarity.toFixed(2)}`;
    const number = element("span", { className: `number ${colour(source.number)}`, textContent: source.number });
    return element("li", {}, number, button, score);
  });
  return element("ul", { className: "sources" }, ...items);
}

export function figureList(figures, firstToken) {
  if (!figures?.forward_passes) return element("dl", { className: "figures" });
  const tokens = figures.completion_tokens;
  const shown = [
    ["tokens per pass", figures.tokens_per_pass.toFixed(2)],
    ["tokens per second", figures.decode_s ? (tokens / figures.decode_s).toFixed(1) : "–"],
    ["to the first token", `${(firstToken ?? figures.queued_s + figures.prefill_s).toFixed(2)} s`],
    ["copied", `${Math.round(100 * figures.copied_coverage)} %`],
  ];
  const parts = shown.map(([name, value]) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value })),
  );
  return element("dl", { className: "figures" }, ...parts);
}

/** A conversation as Markdown, with its sources as numbered citations. */
export function asMarkdown(turns) {
  return turns
    .map((turn) => {
      const cited = turn.sources.map((source) => `[${source.number}] ${place(source)}`).join("\n");
      return `## ${turn.question}\n\n${withCitations(turn)}\n\n${cited}\n`;
    })
    .join("\n");
}

function withCitations(turn) {
  const points = Array.from(turn.answer);
  for (const span of [...turn.spans].sort((one, other) => other.end - one.end)) {
    points.splice(span.end, 0, ` [${span.number}]`);
  }
  return points.join("");
}

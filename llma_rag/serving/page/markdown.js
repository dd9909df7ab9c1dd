// A conversation as Markdown: what was copied is followed by the number of its source, and the sources are listed.

import { place } from "./show.js";

export function asMarkdown(turns) {
  return turns.map(turnAsMarkdown).join("\n");
}

function turnAsMarkdown(turn) {
  const cited = turn.sources.map((source) => `[${source.number}] ${onOneLine(place(source))}  \n`).join("");
  return `## ${onOneLine(turn.question)}\n\n${withCitations(turn)}\n\n${cited}`;
}

/** The answer, which is Markdown already, but never HTML. */
function withCitations(turn) {
  const points = Array.from(turn.answer, (point) => (point === "<" ? "\\<" : point));
  for (const span of [...turn.spans].sort((one, other) => other.end - one.end)) {
    let end = span.end;
    while (/\s/.test(points[end - 1])) end -= 1;
    points.splice(end, 0, ` [${span.number}]`);
  }
  return points.join("");
}

function onOneLine(words) {
  return words.replace(/\s+/g, " ").replace(/[\\`*_<[\]]/g, "\\$&");
}

// The page: a conversation about the documents, the panels beside it, and the race with and without references.

import { ApiError, changeKey, json, request, send, stream, whenKeyIsNeeded } from "./api.js";
import { Documents } from "./documents.js";
import { Reader } from "./reader.js";
import { race } from "./race.js";
import { asMarkdown, element, figureList, marked, sourceList } from "./show.js";

const at = (id) => document.getElementById(id);
const reader = new Reader(at("reader"), tell);
const open = (source, span) => reader.open(source, span);
const documents = new Documents(at("documents"), tell);

let model = null;
let conversation = null; // its id
let turns = [];
let running = null; // an AbortController

start();

async function start() {
  whenKeyIsNeeded(askForKey);
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(ask);
  });
  at("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      at("ask").requestSubmit();
    }
  });
  at("race").addEventListener("click", () => attempt(runRace));
  at("stop").addEventListener("click", () => running?.abort());
  at("new-conversation").addEventListener("click", () => show(null, []));
  at("copy").addEventListener("click", () => attempt(() => navigator.clipboard.writeText(asMarkdown(turns))));
  at("export").addEventListener("click", save);
  at("show-key").addEventListener("click", () => attempt(changeKey));
  for (const name of ["conversations", "documents"]) {
    at(`show-${name}`).addEventListener("click", () => toggle(name));
  }
  await attempt(async () => {
    model = (await json("v1/models")).data[0];
    at("model").textContent = model.id.replace("+documents", "");
    const last = location.hash.slice(1);
    if (last) await load(last);
    if (matchMedia("(min-width: 1100px)").matches) await Promise.all([toggle("conversations"), toggle("documents")]);
  });
  at("question").focus();
}

// -- asking ------------------------------------------------------------------------------------------

async function ask() {
  const question = at("question").value.trim();
  if (!question || running) return;
  if (conversation === null) {
    conversation = (await send("v1/conversations", "POST", {})).id;
    history.replaceState(null, "", `#${conversation}`);
  }
  at("question").value = "";
  const turn = { question, answer: "", reasoning: "", spans: [], sources: [], figures: null };
  const shown = new ShownTurn(turn);
  at("turns").append(shown.root);
  await work(async (signal) => {
    const body = { ...bodyFor(question), conversation };
    try {
      await follow(body, turn, signal, () => shown.update());
      turns.push(turn);
    } catch (error) {
      if (error.name === "AbortError") shown.end("Stopped; this turn is not kept.");
      else {
        shown.end("No answer.");
        at("question").value = question;
        throw error;
      }
    }
  });
  await listConversations();
}

async function runRace() {
  const question = at("question").value.trim() || turns.at(-1)?.question;
  if (!question) throw new ApiError(0, "Write a question to race with.");
  if (running) return;
  await work((signal) => race(at("turns"), question, (draft, turn, update) => {
    return follow({ ...bodyFor(question), draft }, turn, signal, update);
  }, open));
}

function bodyFor(question) {
  return { model: model.id, messages: [{ role: "user", content: question }], mode: at("mode").value };
}

/** Follow an answer event by event into `turn`. */
async function follow(body, turn, signal, update) {
  const begun = performance.now();
  await stream(body, signal, (event) => {
    const choice = event.choices[0];
    const told = event.llma_rag ?? {};
    for (const name of ["sources", "spans", "figures"]) if (told[name]) turn[name] = told[name];
    if (choice?.delta.content || choice?.delta.reasoning_content) {
      turn.firstToken ??= (performance.now() - begun) / 1000;
      turn.answer += choice.delta.content ?? "";
      turn.reasoning += choice.delta.reasoning_content ?? "";
    }
    if (event.usage && turn.figures) turn.figures = { ...turn.figures, completion_tokens: event.usage.completion_tokens };
    update();
  });
}

async function work(task) {
  running = new AbortController();
  const busy = (is) => {
    at("stop").hidden = !is;
    at("send").disabled = at("race").disabled = is;
  };
  busy(true);
  try {
    await task(running.signal);
  } finally {
    running = null;
    busy(false);
  }
}

// -- what was said -----------------------------------------------------------------------------------

class ShownTurn {
  constructor(turn) {
    this.turn = turn;
    this.reasoning = element("p", { className: "reasoning" });
    this.answer = element("div", { className: "answer" });
    this.answer.setAttribute("aria-live", "polite");
    this.rest = element("div");
    this.root = element("section", { className: "turn" });
    this.root.append(element("p", { className: "asked", textContent: turn.question }), this.reasoning, this.answer, this.rest);
    this.update();
  }

  update() {
    const { answer, reasoning, spans, sources, figures, firstToken } = this.turn;
    this.reasoning.textContent = reasoning ?? "";
    this.answer.replaceChildren(marked(answer, spans, sources, open));
    this.rest.replaceChildren(sourceList(sources, open), figureList(figures, firstToken));
  }

  end(words) {
    this.rest.append(element("p", { className: "quiet", textContent: words }));
  }
}

function show(id, kept) {
  running?.abort();
  conversation = id;
  turns = kept;
  history.replaceState(null, "", id ? `#${id}` : location.pathname);
  at("turns").replaceChildren(...turns.map((turn) => new ShownTurn(turn).root));
  at("question").focus();
}

async function load(id) {
  try {
    show(id, (await json(`v1/conversations/${encodeURIComponent(id)}`)).turns);
  } catch (error) {
    if (error.status !== 404) throw error;
    show(null, []);
  }
}

async function listConversations() {
  if (at("conversations").hidden) return;
  const { data } = await json("v1/conversations");
  at("conversation-list").replaceChildren(...data.filter((one) => one.turns).map(conversationItem));
}

function conversationItem(one) {
  const path = `v1/conversations/${one.id}`;
  const button = (name, label, action) => {
    const made = element("button", { className: "small", type: "button", textContent: name });
    made.setAttribute("aria-label", `${label} ${one.title}`);
    made.addEventListener("click", () => attempt(action));
    return made;
  };
  const title = element("button", { className: "plain", type: "button", textContent: one.title });
  title.addEventListener("click", () => attempt(() => load(one.id)));
  const rename = button("Rename", "Rename", async () => {
    const name = element("input", { value: one.title, maxLength: 1000 });
    name.setAttribute("aria-label", "New title");
    name.addEventListener("keydown", (event) => {
      if (event.key === "Enter") attempt(async () => {
        await send(path, "PATCH", { title: name.value });
        await listConversations();
      });
      if (event.key === "Escape") attempt(listConversations);
    });
    title.replaceWith(name);
    name.select();
  });
  const remove = button("Delete", "Delete", async () => {
    await request(path, { method: "DELETE" });
    if (one.id === conversation) show(null, []);
    await listConversations();
  });
  return element("li", {}, title, rename, remove);
}

function save() {
  const url = URL.createObjectURL(new Blob([asMarkdown(turns)], { type: "text/markdown" }));
  element("a", { href: url, download: "conversation.md" }).click();
  URL.revokeObjectURL(url);
}

// -- panels, trouble, the key ------------------------------------------------------------------------

async function toggle(name) {
  const panel = at(name);
  panel.hidden = !panel.hidden;
  at(`show-${name}`).setAttribute("aria-expanded", String(!panel.hidden));
  if (!panel.hidden) await attempt(() => (name === "documents" ? documents.list() : listConversations()));
}

async function attempt(action) {
  tell("");
  try {
    await action();
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message);
  }
}

function tell(message) {
  at("trouble").textContent = message;
  at("trouble").hidden = !message;
}

function askForKey() {
  at("show-key").hidden = false;
  at("key").value = "";
  at("key-dialog").showModal();
  return new Promise((resolve, reject) => {
    at("key-dialog").addEventListener("close", () => {
      if (at("key").value) resolve(at("key").value);
      else reject(new ApiError(401, "Without its key the server answers nothing; choose Key to give it."));
    }, { once: true });
  });
}

// The page: a conversation about the documents, and a race with and without references.

import { ApiError, changeKey, json, send, stream, whenKeyIsNeeded } from "./api.js";
import { Conversations } from "./conversations.js";
import { Documents } from "./documents.js";
import { asMarkdown } from "./markdown.js";
import { closePanel, openPanel } from "./panels.js";
import { race } from "./race.js";
import { Reader } from "./reader.js";
import { element } from "./show.js";
import { ShownTurn } from "./turns.js";

const at = (id) => document.getElementById(id);
const reader = new Reader(at("reader"));
const documents = new Documents(at("documents"), attempt, tell);
const conversations = new Conversations(at("conversations"), attempt, choose);
const open = (source, span) => attempt(() => reader.open(source, span));

let model = null;
let turns = []; // of the conversation, complete ones
let running = null; // an AbortController

start();

async function start() {
  whenKeyIsNeeded(askForKey);
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(ask);
  });
  at("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    at("ask").requestSubmit();
  });
  at("race").addEventListener("click", () => attempt(runRace));
  at("stop").addEventListener("click", () => running?.abort());
  at("copy").addEventListener("click", () => attempt(copy));
  at("save").addEventListener("click", save);
  at("show-key").addEventListener("click", () => attempt(changeKey));
  for (const panel of [at("conversations"), at("documents")]) {
    at(`show-${panel.id}`).addEventListener("click", () => (panel.hidden ? openPanel(panel) : closePanel(panel)));
    new MutationObserver(() => attempt(list)).observe(panel, { attributeFilter: ["hidden"] });
  }
  await attempt(async () => {
    await connect();
    const last = location.hash.slice(1);
    if (last) await choose(last);
  });
  if (matchMedia("(min-width: 1100px)").matches) [at("conversations"), at("documents")].forEach(openPanel);
  if (matchMedia("(pointer: fine)").matches) at("question").focus();
}

/** Find out what answers from the documents; the server may have come only after the page. */
async function connect() {
  if (model) return;
  const [chatbot] = (await json("v1/models")).data;
  model = chatbot.id;
  at("model").textContent = model.replace("+documents", "");
  at("mode").value = chatbot.mode;
}

async function list() {
  await Promise.all([conversations.list(), documents.list()]);
}

// -- asking ------------------------------------------------------------------------------------------

async function ask() {
  const question = at("question").value.trim();
  if (!question || running) return;
  await work("Answering", async (signal) => {
    const turn = newTurn(question);
    const shown = new ShownTurn(turn, open);
    at("turns").append(shown.root);
    shown.root.scrollIntoView({ block: "nearest" });
    at("question").value = "";
    try {
      await begin();
      const body = { ...bodyFor(question), conversation: conversations.current };
      await follow(body, turn, signal, () => keepingEndInView(() => shown.update()));
    } catch (error) {
      if (error.name === "AbortError") shown.end("Stopped; this turn is not kept.");
      else {
        if (turn.answer) shown.end("Broken off; this turn is not kept.");
        else shown.root.remove();
        at("question").value ||= question;
      }
      throw error;
    }
    turns.push(turn);
    at("keep").hidden = false;
    return turn.answer;
  });
  await conversations.list();
}

async function runRace() {
  const question = at("question").value.trim() || turns.at(-1)?.question;
  if (!question) throw new ApiError(0, "Write a question to race with.");
  if (running) return;
  await work("Racing", (signal) => race(at("turns"), question, (draft, turn, update) => {
    return follow({ ...bodyFor(question), draft }, turn, signal, () => keepingEndInView(update));
  }, open));
}

async function begin() {
  await connect();
  if (conversations.current !== null) return;
  setCurrent((await send("v1/conversations", "POST", {})).id);
}

function newTurn(question) {
  return { question, answer: "", reasoning: "", spans: [], sources: [], figures: null };
}

function bodyFor(question) {
  return { model, messages: [{ role: "user", content: question }], mode: at("mode").value };
}

/** Follow an answer event by event into `turn`. */
async function follow(body, turn, signal, update) {
  const begun = performance.now();
  await stream(body, signal, (event) => {
    const choice = event.choices[0];
    const told = event.llma_rag ?? {};
    for (const name of ["sources", "spans", "figures"]) if (told[name]) turn[name] = told[name];
    turn.leftOut = told.left_out_turns ?? turn.leftOut;
    if (choice?.delta.content || choice?.delta.reasoning_content) {
      turn.firstToken ??= (performance.now() - begun) / 1000;
      turn.answer += choice.delta.content ?? "";
      turn.reasoning += choice.delta.reasoning_content ?? "";
    }
    update();
  });
}

/** Do some work that Stop ends; `task(signal)` returns what screen readers say once it is done. */
async function work(name, task) {
  running = new AbortController();
  const { signal } = running;
  const busy = (is) => {
    at("stop").hidden = !is;
    at("send").disabled = at("race").disabled = is;
  };
  busy(true);
  say(`${name} …`);
  try {
    at("spoken").textContent = await task(signal);
    say("");
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped." : "");
    throw error;
  } finally {
    running = null;
    busy(false);
  }
}

function keepingEndInView(change) {
  const page = document.documentElement;
  const isAtEnd = page.scrollTop + page.clientHeight > page.scrollHeight - 40;
  change();
  if (isAtEnd) page.scrollTop = page.scrollHeight;
}

// -- conversations -----------------------------------------------------------------------------------

/** Show a conversation, or a new one for null. */
async function choose(id) {
  running?.abort();
  let kept = [];
  try {
    if (id) kept = (await json(`v1/conversations/${encodeURIComponent(id)}`)).turns;
  } catch (error) {
    if (error.status !== 404) throw error;
    id = null;
  }
  setCurrent(id);
  turns = kept;
  at("keep").hidden = !turns.length;
  at("turns").replaceChildren(...turns.map((turn) => new ShownTurn(turn, open).root));
  say("");
  await conversations.list();
}

function setCurrent(id) {
  conversations.current = id;
  history.replaceState(null, "", id ? `#${id}` : location.pathname);
}

async function copy() {
  if (!navigator.clipboard) throw new ApiError(0, "The browser lets pages without HTTPS copy nothing; choose Save.");
  await navigator.clipboard.writeText(asMarkdown(turns));
  say("Copied.");
}

function save() {
  const url = URL.createObjectURL(new Blob([asMarkdown(turns)], { type: "text/markdown" }));
  element("a", { href: url, download: "conversation.md" }).click();
  URL.revokeObjectURL(url);
}

// -- what is told, and the key -----------------------------------------------------------------------

async function attempt(action) {
  tell("");
  try {
    await action();
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message);
  }
}

function tell(trouble) {
  at("trouble").textContent = trouble;
  at("trouble").hidden = !trouble;
}

function say(words) {
  at("status").textContent = words;
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

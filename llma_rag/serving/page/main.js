// The page: a conversation about the documents, and a race with and without references.

import { ApiError, changeKey, hasKey, json, send, stream, whenKeyIsNeeded } from "./api.js";
import { Conversations } from "./conversations.js";
import { Documents } from "./documents.js";
import { asMarkdown } from "./markdown.js";
import { closePanel, closeWhereItCovers, openPanel } from "./panels.js";
import { race } from "./race.js";
import { Reader } from "./reader.js";
import { element } from "./show.js";
import { ShownTurn, newTurn, receive } from "./turns.js";

const BUSY_MS = 300; // between tries while a stopped answer still ends in the same conversation
const BUSY_TRIES = 10;
const HASH = "#conversation=";
const NEAR_END = 200; // pixels above the end of the page within which it is followed

const at = (id) => document.getElementById(id);
const reader = new Reader(at("reader"));
const documents = new Documents(at("documents"), attempt, showTrouble, (document) => reader.open(document));
const conversations = new Conversations(at("conversations"), attempt, choose);
const open = (source, span) => attempt(() => reader.open(source, span));

let chatbot = null; // the model that answers from the documents
let view = { id: null, turns: [] }; // the conversation on the screen, with its complete turns
let wanted = idInAddress(); // the conversation to be shown once there is a server
let choices = 0; // of conversations so far
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
  at("skip").addEventListener("click", (event) => {
    event.preventDefault();
    at("question").focus();
  });
  at("mode").addEventListener("change", () => sessionStorage.setItem("mode", at("mode").value));
  at("race").addEventListener("click", () => attempt(runRace));
  at("stop").addEventListener("click", () => running?.abort());
  at("copy").addEventListener("click", () => attempt(copy));
  at("save").addEventListener("click", save);
  at("dismiss").addEventListener("click", () => showTrouble(""));
  at("show-key").addEventListener("click", () => attempt(useOtherKey));
  at("show-key").hidden = !hasKey();
  addEventListener("popstate", () => attempt(() => choose(idInAddress())));
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    if (at("reader").hidden) running?.abort();
    else closePanel(at("reader"));
  });
  for (const panel of [at("conversations"), at("documents")]) {
    at(`show-${panel.id}`).addEventListener("click", () => (panel.hidden ? openPanel(panel) : closePanel(panel)));
    new MutationObserver(list).observe(panel, { attributeFilter: ["hidden"] });
  }
  await attempt(connect);
  if (matchMedia("(min-width: 1100px)").matches) {
    for (const name of ["conversations", "documents"]) openPanel(at(name), { takeFocus: false });
  }
  focusQuestion();
}

/** Find out what answers from the documents; the server may come only after the page. */
async function connect() {
  if (chatbot) return;
  chatbot = (await json("v1/models")).data.find((model) => model.mode);
  at("model").textContent = chatbot.root;
  at("mode").value = sessionStorage.getItem("mode") ?? chatbot.mode;
  if (wanted) await choose(wanted);
  wanted = null;
}

/** List what the open panels show. */
async function list() {
  if (!chatbot) return;
  await Promise.all([documents.list(), conversations.list().catch((error) => showTrouble(error.message))]);
}

// -- asking ------------------------------------------------------------------------------------------

async function ask() {
  const question = at("question").value.trim();
  if (!question) return;
  await connect();
  if (running) return;
  await work("Answering", async (signal) => {
    const here = view;
    const turn = newTurn(question);
    const shown = new ShownTurn(turn, open);
    at("turns").append(shown.root);
    at("question").value = "";
    scrollToEnd();
    try {
      await begin(here, signal);
      const body = { ...bodyFor([], question), conversation: here.id };
      await follow(body, turn, signal, () => keepEndInView(() => shown.update()));
    } catch (error) {
      if (error.name !== "AbortError" || !turn.figures) { // else it was stopped when it was complete
        endEarly(shown, error);
        if (error.status !== 404 || here.id === null) throw error;
        here.id = null;
        throw new ApiError(404, "This conversation was deleted elsewhere. Ask again to begin a new one.");
      }
    }
    here.turns.push(turn);
    at("export").hidden = !view.turns.length;
    return turn.answer;
  });
  await list();
}

/** Say what became of a turn; what was asked is not lost. */
function endEarly(shown, error) {
  const { question, answer, reasoning } = shown.turn;
  at("question").value ||= question;
  if (error.name === "AbortError") shown.end("Stopped; this turn is not kept.");
  else if (answer || reasoning) shown.end("Broken off; this turn is not kept.");
  else shown.root.remove();
}

async function runRace() {
  const typed = at("question").value.trim();
  const question = typed || view.turns.at(-1)?.question;
  if (!question) throw new ApiError(0, "Write a question to race with.");
  await connect();
  if (running) return;
  await work("Racing", (signal) => {
    const earlier = typed ? view.turns : view.turns.slice(0, -1);
    const answer = (draft, turn, update) => {
      return follow({ ...bodyFor(earlier, question), draft }, turn, signal, () => keepEndInView(update));
    };
    return race(at("turns"), question, answer, open);
  });
  if (typed === at("question").value.trim()) at("question").value = "";
}

/** Have the server keep a conversation, if it does not yet. */
async function begin(here, signal) {
  if (here.id !== null) return;
  here.id = (await send("v1/conversations", "POST", {}, signal)).id;
  if (view === here) showId();
}

function bodyFor(earlier, question) {
  const said = earlier.flatMap((turn) => [
    { role: "user", content: turn.question },
    { role: "assistant", content: turn.answer },
  ]);
  return { model: chatbot.id, messages: [...said, { role: "user", content: question }], mode: at("mode").value };
}

/** Follow an answer event by event into `turn`. */
async function follow(body, turn, signal, update) {
  const onEvent = (event) => {
    receive(turn, event);
    update();
  };
  for (let tries = 1; ; tries += 1) {
    try {
      return await stream(body, signal, onEvent);
    } catch (error) {
      if (error.status !== 409 || tries === BUSY_TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, BUSY_MS));
    }
  }
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
  if (document.activeElement === document.body) focusQuestion(); // the button that had it is disabled
  showStatus(`${name} …`);
  try {
    at("spoken").textContent = await task(signal);
    showStatus("");
  } catch (error) {
    showStatus(error.name === "AbortError" ? "Stopped." : "");
    throw error;
  } finally {
    running = null;
    busy(false);
    if (document.activeElement === document.body) focusQuestion();
  }
}

function keepEndInView(change) {
  const page = document.documentElement;
  const isAtEnd = page.scrollTop + page.clientHeight > page.scrollHeight - NEAR_END;
  change();
  if (isAtEnd) scrollToEnd();
}

function scrollToEnd() {
  scrollTo(0, document.documentElement.scrollHeight);
}

// -- conversations -----------------------------------------------------------------------------------

/** Show a conversation, or a new one for null. */
async function choose(id) {
  choices += 1;
  const choice = choices;
  let turns = [];
  try {
    if (id !== null) turns = (await json(`v1/conversations/${encodeURIComponent(id)}`)).turns;
  } catch (error) {
    if (error.status !== 404) throw error;
    id = null;
  }
  if (choice !== choices) return; // another was chosen meanwhile
  running?.abort();
  view = { id, turns };
  showId();
  at("export").hidden = !turns.length;
  at("turns").replaceChildren(...turns.map((turn) => new ShownTurn(turn, open).root));
  showStatus("");
  closeWhereItCovers(at("conversations"));
  scrollToEnd();
  focusQuestion();
  await conversations.list();
}

function showId() {
  conversations.current = view.id;
  if (view.id !== idInAddress()) history.pushState(null, "", view.id ? HASH + view.id : location.pathname);
}

function idInAddress() {
  return location.hash.startsWith(HASH) ? location.hash.slice(HASH.length) : null;
}

async function copy() {
  if (!navigator.clipboard) throw new ApiError(0, "The browser lets pages without HTTPS copy nothing; choose Save.");
  await navigator.clipboard.writeText(asMarkdown(view.turns));
  showStatus("Copied.");
}

function save() {
  const url = URL.createObjectURL(new Blob([asMarkdown(view.turns)], { type: "text/markdown" }));
  element("a", { href: url, download: "conversation.md" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// -- what is told, and the key -----------------------------------------------------------------------

/** Run an action of the user's; what goes wrong is told until the next. */
async function attempt(action) {
  showTrouble("");
  try {
    await action();
  } catch (error) {
    if (error.name !== "AbortError") showTrouble(error.message);
  }
}

function showTrouble(message) {
  at("trouble-text").textContent = message;
  at("trouble").hidden = !message;
}

function showStatus(words) {
  at("status").textContent = words;
}

/** Where there is a keyboard; elsewhere one would cover the screen. */
function focusQuestion() {
  if (matchMedia("(pointer: fine)").matches) at("question").focus();
}

async function useOtherKey() {
  await changeKey();
  await connect();
  await list();
}

/** Ask for the API key; `note` says why. */
function askForKey(note) {
  const dialog = at("key-dialog");
  at("show-key").hidden = false;
  at("key-note").textContent = note;
  at("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.addEventListener("close", () => {
      if (dialog.returnValue === "use") resolve(at("key").value.trim());
      else reject(new ApiError(401, "Without its key the server answers nothing; choose Key to give it."));
    }, { once: true });
  });
}

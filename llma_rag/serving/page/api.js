// The server's API: JSON requests, uploads, answers as streams of events, and errors in words.

const GONE = "The server does not answer. Is it still running?";
const BROKEN = "The connection was lost in the middle of the answer.";

let key = sessionStorage.getItem("key") || "";
let askForKey = null; // async, told why, returns a key
let asking = null; // the promise of a key that is being asked for

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function whenKeyIsNeeded(ask) {
  askForKey = ask;
}

export function hasKey() {
  return Boolean(key);
}

/** Have another key given; all who want one wait for the same. */
export function changeKey(note = "") {
  asking ??= askForKey(note)
    .then((given) => (key = given))
    .finally(() => (asking = null));
  return asking;
}

export async function request(path, options = {}) {
  const response = await withKey(async () => {
    try {
      return await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
    } catch (error) {
      throw error.name === "AbortError" ? error : new ApiError(0, GONE);
    }
  });
  if (!response.ok) throw asError(response.status, await response.text(), response.headers.get("Retry-After"));
  return response;
}

export async function json(path, options) {
  return (await request(path, options)).json();
}

export function send(path, method, body, signal) {
  return json(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
}

/** Send a file as a form; `onProgress` hears the share that is sent, which only the older kind of request tells. */
export async function upload(path, file, onProgress) {
  const form = new FormData();
  form.append("file", file);
  const sent = await withKey(() => new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    sending.open("POST", path);
    for (const [name, value] of Object.entries(headers())) sending.setRequestHeader(name, value);
    sending.upload.addEventListener("progress", (event) => onProgress(event.loaded / event.total));
    sending.addEventListener("load", () => resolve(sending));
    sending.addEventListener("error", () => reject(new ApiError(0, GONE)));
    sending.send(form);
  }));
  if (sent.status >= 300) throw asError(sent.status, sent.responseText, sent.getResponseHeader("Retry-After"));
}

/** Ask, and call `onEvent` with each event of the answer. */
export async function stream(body, signal, onEvent) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_spans: true } }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let held = ""; ; ) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ApiError(0, BROKEN);
      });
      if (done) throw new ApiError(0, BROKEN);
      const parts = (held + value).split("\n\n"); // events of this server are one line each
      held = parts.pop();
      for (const part of parts) {
        if (part === "data: [DONE]") return;
        if (!part.startsWith("data: ")) continue; // a comment: the answer is still to come
        const event = JSON.parse(part.slice(6));
        if (event.error) throw new ApiError(503, event.error.message);
        onEvent(event);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it has ended already, or is to
  }
}

/** Make a request, again with another key where the server refuses this one. */
async function withKey(make) {
  for (;;) {
    const used = key;
    const response = await make();
    if (response.status !== 401) {
      if (key) sessionStorage.setItem("key", key);
      return response;
    }
    if (key === used) await changeKey(used ? "The server refused this key." : "");
  }
}

function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function asError(status, body, retryAfter) {
  if (status === 429) return new ApiError(status, `The server is busy. Try again in ${retryAfter ?? "a few"} s.`);
  try {
    return new ApiError(status, JSON.parse(body).error.message);
  } catch {
    return new ApiError(status, `The server answered with status ${status}.`); // a proxy, perhaps
  }
}

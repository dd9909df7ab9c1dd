// The server's API: JSON requests, answers as streams of events, and errors in words.

const GONE = "The server does not answer. Is it still running?";
const BROKEN = "The connection was lost in the middle of the answer.";

let key = sessionStorage.getItem("key") || "";
let askForKey = null; // async, returns a key

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function whenKeyIsNeeded(ask) {
  askForKey = ask;
}

export async function changeKey() {
  key = await askForKey();
  sessionStorage.setItem("key", key);
}

export async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, GONE);
  }
  if (response.status === 401) {
    await changeKey();
    return request(path, options);
  }
  if (!response.ok) throw asError(response.status, await response.text(), response.headers.get("Retry-After"));
  return response;
}

export async function json(path, options) {
  return (await request(path, options)).json();
}

/** Send a file as a form; `onProgress` hears the share that is sent. Only the older kind of request tells it. */
export async function upload(path, file, onProgress) {
  const form = new FormData();
  form.append("file", file);
  const response = await new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    sending.open("POST", path);
    for (const [name, value] of Object.entries(headers())) sending.setRequestHeader(name, value);
    sending.upload.addEventListener("progress", (event) => onProgress(event.loaded / event.total));
    sending.addEventListener("load", () => resolve(sending));
    sending.addEventListener("error", () => reject(new ApiError(0, GONE)));
    sending.send(form);
  });
  if (response.status === 401) {
    await changeKey();
    return upload(path, file, onProgress);
  }
  if (response.status >= 300) {
    const retryAfter = response.getResponseHeader("Retry-After");
    throw asError(response.status, response.responseText, retryAfter);
  }
}

export function send(path, method, body) {
  return json(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

/** Ask, and call `onEvent` with each event of the answer. */
export async function stream(body, signal, onEvent) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true, include_spans: true } }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  let ended = false;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      held += value;
      const parts = held.split("\n\n");
      held = parts.pop();
      for (const part of parts) {
        if (part === "data: [DONE]") ended = true;
        else if (part.startsWith("data: ")) deliver(JSON.parse(part.slice(6)), onEvent);
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError(0, BROKEN);
  }
  if (!ended) throw new ApiError(0, BROKEN);
}

function deliver(event, onEvent) {
  if (event.error) throw new ApiError(503, event.error.message);
  onEvent(event);
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

// The server's API: JSON requests, answers as streams of events, and errors in words.

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
    throw new ApiError(0, "The server does not answer. Is it still running?");
  }
  if (response.status === 401) {
    await changeKey();
    return request(path, options);
  }
  if (!response.ok) throw await asError(response);
  return response;
}

export async function json(path, options) {
  return (await request(path, options)).json();
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
    throw new ApiError(0, "The connection was lost in the middle of the answer.");
  }
  if (!ended) throw new ApiError(0, "The connection was lost in the middle of the answer.");
}

function deliver(event, onEvent) {
  if (event.error) throw new ApiError(503, event.error.message);
  onEvent(event);
}

function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function asError(response) {
  let message = response.statusText;
  try {
    message = (await response.json()).error.message;
  } catch {
    // no JSON: the status says it
  }
  if (response.status === 429) {
    const seconds = response.headers.get("Retry-After") || "a few";
    message = `The server is busy. Try again in ${seconds} s.`;
  }
  return new ApiError(response.status, message);
}

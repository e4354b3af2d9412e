// What the chat page asks of the server: the public API alone, with the key that its user has typed.

export function headers(key) {
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

// "ready", "starting" or "gone".
export async function health() {
  try {
    return (await fetch("/ready")).status === 200 ? "ready" : "starting";
  } catch {
    return "gone";
  }
}

// Id of the first model; null if the key is refused.
export async function modelName(key) {
  const response = await fetch("/v1/models", { headers: headers(key) });
  return response.ok ? (await response.json()).data[0].id : null;
}

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Chunks of an answer as they come. Throws Refused, and Error with the server's words if the stream ends in an error.
export async function* chat(body, key, signal) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST", headers: headers(key), body: JSON.stringify(body), signal,
  });
  if (!response.ok) throw new Refused(response.status, await failure(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (pending + value).split("\n\n");
    pending = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function failure(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `HTTP ${response.status}`;
  }
}

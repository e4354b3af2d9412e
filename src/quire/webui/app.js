// The chat page. It talks to the public API alone: GET /health, GET /v1/models and POST /v1/chat/completions.

import { translate, word } from "./i18n.js";
import { copyText, element, markdown } from "./markdown.js";

const FIELDS = [
  { name: "temperature", min: 0, step: 0.1 },
  { name: "top_p", min: 0, max: 1, step: 0.05 },
  { name: "top_k", min: -1, step: 1 },
  { name: "max_tokens", min: 1, step: 1 },
  { name: "repetition_penalty", min: 0, step: 0.05 },
  { name: "seed", step: 1 },
];
const HEALTH_EVERY_MS = 5000;
const $ = (selector) => document.querySelector(selector);

// Messages are {role, content} and, of the assistant, {reasoning, note, error}; what is drawn is made from these.
const chat = { messages: [], request: null, editing: null, model: null, health: "starting", triedKey: null };

// ---- requests ----

function headers() {
  const key = $("#api-key").value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

function requestBody() {
  const body = { model: chat.model ?? "", stream: true, stream_options: { include_usage: true } };
  if (!chat.model) delete body.model;
  for (const { name } of FIELDS) {
    const input = $(`#field-${name}`);
    if (input.validity.badInput) throw new Error(`${word("badNumber")} ${word(name)}`);
    if (input.value.trim()) body[name] = Number(input.value);
  }
  const system = $("#system").value.trim();
  const spoken = chat.messages.filter((message) => message.role === "user" || message.content);
  body.messages = [
    ...(system ? [{ role: "system", content: system }] : []),
    ...spoken.map(({ role, content }) => ({ role, content })),
  ];
  return body;
}

async function* events(response) {
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

async function ask() {
  let body;
  const answer = { role: "assistant", content: "", reasoning: "", note: "", error: "", pending: true };
  const began = performance.now();
  let first = null;
  let usage = null;
  let reason = null;
  const request = new AbortController();
  try {
    body = requestBody();
    chat.messages.push(answer);
    chat.request = request;
    draw();
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal: request.signal,
    });
    if (response.status === 401) showSettings(true); // the key's place
    if (!response.ok) throw new Error(await failure(response));
    for await (const event of events(response)) {
      usage = event.usage ?? usage;
      const choice = event.choices[0];
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      const thought = choice.delta.reasoning ?? choice.delta.reasoning_content ?? "";
      if (first === null && (choice.delta.content || thought)) first = performance.now();
      answer.content += choice.delta.content ?? "";
      answer.reasoning += thought;
      drawAnswerSoon(answer);
    }
  } catch (error) {
    if (body === undefined) chat.messages.push(answer); // a field is no number; else it is there, or its chat is gone
    if (request.signal.aborted) reason = "abort";
    else answer.error = error.message;
  } finally {
    answer.pending = false;
    answer.stats = { usage, reason, first: first && first - began, decode: first && performance.now() - first };
    // A chat that was begun anew meanwhile has a request of its own, or none.
    if (chat.request === request) chat.request = null;
    draw();
  }
}

// The note below an answer; in words of the moment's language, so it is made when drawn.
function noteOf({ stats }) {
  if (!stats) return "";
  const parts = [];
  const tokens = stats.usage?.completion_tokens;
  if (tokens) parts.push(`${tokens} ${word("tokens")}`);
  if (tokens > 1 && stats.decode > 0) parts.push(`${((tokens - 1) / (stats.decode / 1000)).toFixed(0)} ${word("perSecond")}`);
  if (stats.first) parts.push(`${word("first")} ${stats.first.toFixed(0)} ms`);
  if (stats.reason === "abort") parts.push(word("stopped"));
  if (stats.reason === "length") parts.push(word("cut"));
  return parts.join(" · ");
}

function send(text) {
  chat.messages.push({ role: "user", content: text });
  ask();
}

function stop() {
  chat.request?.abort();
}

function retry(index) {
  chat.messages.length = index;
  ask();
}

function resend(index, text) {
  chat.editing = null;
  chat.messages.length = index;
  send(text);
}

// ---- drawing ----

function button(name, action) {
  const node = element("button", { type: "button", className: `small ${name}`, textContent: word(name) });
  node.addEventListener("click", action);
  return node;
}

function editor(message, index) {
  const area = element("textarea", { value: message.content, rows: 3, ariaLabel: word("message") });
  const cancel = () => {
    chat.editing = null;
    draw();
  };
  const save = () => area.value.trim() && resend(index, area.value.trim());
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") cancel();
    if (isSend(event)) {
      event.preventDefault();
      save();
    }
  });
  queueMicrotask(() => area.focus());
  return element("div", { className: "editor" }, area, element("div", { className: "actions" }, button("save", save), button("cancel", cancel)));
}

function answerBody(message) {
  const node = document.createDocumentFragment();
  if (message.reasoning) {
    const text = element("div", { className: "plain", textContent: message.reasoning });
    node.append(element("details", { open: !message.content }, element("summary", { textContent: word("thinking") }), text));
  }
  node.append(markdown(message.content, { copy: word("copy"), copied: word("copied") }));
  if (message.error) node.append(element("p", { className: "error", role: "alert", textContent: `${word("error")}: ${message.error}` }));
  if (message.pending) node.append(element("span", { className: "cursor", ariaHidden: "true" }));
  return node;
}

function bubble(message, index) {
  const mine = message.role === "user";
  const node = element("article", { className: `message ${message.role}` });
  if (chat.editing === index) {
    node.append(editor(message, index));
    return node;
  }
  const body = element("div", { className: "body" });
  if (mine) body.textContent = message.content;
  else body.append(answerBody(message));
  node.append(body);
  message.node = body;
  if (chat.request) return node;
  const actions = element("div", { className: "actions" });
  if (mine) {
    actions.append(button("edit", () => {
      chat.editing = index;
      draw();
    }));
  } else {
    actions.append(button("retry", () => retry(index)));
    if (message.content) {
      const copy = button("copy", async () => {
        await copyText(message.content);
        copy.textContent = word("copied");
      });
      actions.append(copy);
    }
    actions.append(element("span", { className: "note", textContent: noteOf(message) }));
  }
  node.append(actions);
  return node;
}

function draw() {
  const box = $("#messages");
  box.classList.toggle("empty", chat.messages.length === 0);
  if (chat.messages.length) box.replaceChildren(...chat.messages.map(bubble));
  else {
    box.replaceChildren(
      element("div", { className: "welcome" }, element("h2", { textContent: word("welcome") }), element("p", { textContent: word("welcomeHint") })),
    );
  }
  box.ariaBusy = String(Boolean(chat.request));
  $("#send").hidden = Boolean(chat.request);
  $("#stop").hidden = !chat.request;
  box.scrollTop = box.scrollHeight;
}

let drawing = null;

// At most one drawing a frame, however many tokens come. Who has scrolled up to read stays there.
function drawAnswerSoon(message) {
  drawing ??= requestAnimationFrame(() => {
    drawing = null;
    if (!message.pending) return;
    const box = $("#messages");
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    message.node.replaceChildren(answerBody(message));
    if (atEnd) box.scrollTop = box.scrollHeight;
  });
}

function drawHead() {
  $("#model-name").textContent = chat.model ?? word(chat.health);
  $("#status").className = `dot ${chat.health}`;
  $("#model").title = word(chat.health);
  for (const { name } of FIELDS) {
    $(`label[for=field-${name}]`).textContent = word(name);
    $(`#field-${name}`).placeholder = word("default");
  }
}

// ---- the page ----

// Enter sends, but not the Enter that ends the input of a Chinese word.
function isSend(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

function grow() {
  const area = $("#prompt");
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, 200) + 2}px`;
}

function submit() {
  const text = $("#prompt").value.trim();
  if (!text || chat.request) return;
  $("#prompt").value = "";
  grow();
  chat.editing = null;
  send(text);
}

function showSettings(shown) {
  document.body.classList.toggle("with-settings", shown);
  $("#toggle-settings").ariaExpanded = String(shown);
}

async function lookAtServer() {
  try {
    chat.health = (await fetch("/ready")).status === 200 ? "ready" : "starting";
    const key = $("#api-key").value;
    if (chat.health === "ready" && !chat.model && chat.triedKey !== key) {
      chat.triedKey = key;
      const response = await fetch("/v1/models", { headers: headers() });
      if (response.ok) chat.model = (await response.json()).data[0].id;
    }
  } catch {
    chat.health = "gone";
  }
  drawHead();
}

function start() {
  for (const { name, ...limits } of FIELDS) {
    const input = element("input", { id: `field-${name}`, type: "number", ...limits });
    $("#sampling").append(element("label", { htmlFor: input.id }), input);
  }
  $("#composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  $("#prompt").addEventListener("keydown", (event) => {
    if (isSend(event)) {
      event.preventDefault();
      submit();
    }
  });
  $("#prompt").addEventListener("input", grow);
  $("#stop").addEventListener("click", stop);
  $("#new").addEventListener("click", () => {
    stop();
    Object.assign(chat, { messages: [], request: null, editing: null });
    draw();
    $("#prompt").focus();
  });
  $("#toggle-settings").addEventListener("click", () => showSettings(!document.body.classList.contains("with-settings")));
  $("#close-settings").addEventListener("click", () => showSettings(false));
  $("#api-key").addEventListener("change", lookAtServer);
  translate(() => {
    drawHead();
    draw();
  });
  lookAtServer();
  setInterval(lookAtServer, HEALTH_EVERY_MS);
  $("#prompt").focus();
}

start();

// The chat page. What is drawn is made from `chat`; that and the settings last until the tab is closed.

import { chat as answerOf, health, modelName } from "./api.js";
import { translate, word, words } from "./i18n.js";
import { drawIcons, icon } from "./icons.js";
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
const AT_END_PX = 60;
const KEPT = "quire-chat";
const $ = (selector) => document.querySelector(selector);

// Messages are {role, content} and, of the assistant, {reasoning, error, stats, pending}.
const chat = { messages: [], request: null, editing: null, model: null, health: "starting", triedKey: null };
const apiKey = () => $("#api-key").value.trim();

// ---- requests ----

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

async function read(body, answer, request, timing) {
  for await (const event of answerOf(body, apiKey(), request.signal)) {
    timing.usage = event.usage ?? timing.usage;
    const choice = event.choices[0];
    if (!choice) continue;
    timing.reason = choice.finish_reason ?? timing.reason;
    const thought = choice.delta.reasoning ?? choice.delta.reasoning_content ?? "";
    if (timing.first === null && (choice.delta.content || thought)) timing.first = performance.now();
    answer.content += choice.delta.content ?? "";
    answer.reasoning += thought;
    drawAnswerSoon(answer);
  }
}

async function ask() {
  const answer = { role: "assistant", content: "", reasoning: "", error: "", pending: true };
  const began = performance.now();
  const timing = { usage: null, reason: null, first: null };
  const request = new AbortController();
  let body;
  try {
    body = requestBody();
    chat.messages.push(answer);
    chat.request = request;
    draw(true);
    await read(body, answer, request, timing);
  } catch (error) {
    if (body === undefined) chat.messages.push(answer); // a field is no number; else it is there, or its chat is gone
    if (request.signal.aborted) timing.reason = "abort";
    else answer.error = error instanceof TypeError ? word("gone") : error.message; // what fetch throws without a connection
    if (error.status === 401) showSettings(true); // the key's place
  } finally {
    answer.pending = false;
    const { usage, reason, first } = timing;
    answer.stats = { usage, reason, first: first && first - began, decode: first && performance.now() - first };
    // A chat that was begun anew meanwhile has a request of its own, or none.
    if (chat.request === request) chat.request = null;
    draw(isAtEnd());
  }
}

function send(text) {
  chat.messages.push({ role: "user", content: text });
  ask();
}

function stop() {
  chat.request?.abort();
  $("#prompt").focus();
}

function resend(index, text) {
  chat.editing = null;
  chat.messages.length = index;
  send(text);
}

function edit(index) {
  chat.editing = index;
  draw();
}

// ---- what lasts until the tab is closed ----

function keep() {
  const messages = chat.messages.filter(({ pending }) => !pending).map(({ node, ...rest }) => rest);
  const fields = Object.fromEntries(FIELDS.map(({ name }) => [name, $(`#field-${name}`).value]));
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ messages, fields, system: $("#system").value }));
  } catch {
    // storage is switched off or full; the chat then lasts as long as the page
  }
}

function restore() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT));
    if (!kept) return;
    chat.messages = kept.messages;
    $("#system").value = kept.system;
    for (const { name } of FIELDS) $(`#field-${name}`).value = kept.fields[name] ?? "";
  } catch {
    // nothing that this version has written
  }
}

// ---- drawing ----

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

// An icon, and the word for it that is read aloud.
function face(name) {
  return [icon(name), element("span", { className: "hidden", textContent: word(name) })];
}

function button(name, action) {
  const node = element("button", { type: "button", className: `bare ${name}`, title: word(name) }, ...face(name));
  node.addEventListener("click", action);
  return node;
}

function copyButton(text) {
  const node = button("copy", () => copyText(text, (name) => node.replaceChildren(...face(name))));
  return node;
}

function editor(message, index) {
  const area = element("textarea", { value: message.content, rows: 3, ariaLabel: word("message") });
  const cancel = () => {
    chat.editing = null;
    draw();
    $(`.message[data-index="${index}"] .edit`)?.focus();
  };
  const save = () => area.value.trim() && resend(index, area.value.trim());
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    }
    if (isSend(event)) {
      event.preventDefault();
      save();
    }
  });
  queueMicrotask(() => {
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  });
  const buttons = [["save", save, "small primary"], ["cancel", cancel, "small"]].map(([name, action, className]) => {
    const node = element("button", { type: "button", className: `${className} ${name}`, textContent: word(name) });
    node.addEventListener("click", action);
    return node;
  });
  return element("div", { className: "editor" }, area, element("div", { className: "actions" }, ...buttons));
}

function thoughts(message) {
  const text = element("div", { className: "plain", textContent: message.reasoning });
  const node = element("details", { open: message.opened ?? !message.content }, element("summary", { textContent: word("thinking") }), text);
  node.firstChild.addEventListener("click", () => { message.opened = !node.open; });
  return node;
}

function answerBody(message) {
  const node = document.createDocumentFragment();
  if (message.reasoning) node.append(thoughts(message));
  node.append(markdown(message.content, { copy: word("copy"), copied: word("copied") }));
  if (message.error) node.append(element("p", { className: "error", role: "alert", textContent: word("error") + word("colon") + message.error }));
  if (message.pending && !message.content) node.append(element("span", { className: "waiting", ariaHidden: "true" }, ...[1, 2, 3].map(() => element("i"))));
  return node;
}

function actionsOf(message, index) {
  const actions = element("div", { className: "actions" });
  if (message.role === "user") actions.append(button("edit", () => edit(index)));
  else {
    actions.append(button("retry", () => {
      chat.messages.length = index;
      ask();
    }));
    if (message.content) actions.append(copyButton(message.content));
    actions.append(element("span", { className: "note", textContent: noteOf(message) }));
  }
  return actions;
}

function bubble(message, index) {
  const mine = message.role === "user";
  const node = element("article", { className: `message ${message.role}`, ariaLabel: word(mine ? "you" : "assistant") });
  node.dataset.index = index;
  if (chat.editing === index) {
    node.append(editor(message, index));
    return node;
  }
  const body = element("div", { className: message.pending && message.content ? "body streaming" : "body" });
  if (mine) body.textContent = message.content;
  else body.append(answerBody(message));
  node.append(body);
  message.node = body;
  if (!chat.request) node.append(actionsOf(message, index));
  return node;
}

// An empty chat: what can be asked, to be had with a click.
function welcome() {
  const chips = words("examples").map((text) => {
    const chip = element("button", { type: "button", className: "chip", textContent: text });
    chip.addEventListener("click", () => chat.request || send(text));
    return chip;
  });
  const mark = element("img", { src: "/ui/icon.svg", alt: "", width: 48, height: 48 });
  const hint = element("p", { textContent: word("welcomeHint") });
  return element("div", { className: "welcome" }, mark, element("h2", { textContent: word("welcome") }), hint, element("div", { className: "chips" }, ...chips));
}

function isAtEnd() {
  const box = $("#messages");
  return box.scrollHeight - box.scrollTop - box.clientHeight < AT_END_PX;
}

function toEnd() {
  $("#messages").scrollTop = $("#messages").scrollHeight;
}

function draw(thenToEnd = false) {
  const box = $("#messages");
  const empty = chat.messages.length === 0;
  box.classList.toggle("empty", empty);
  const place = box.scrollTop;
  box.replaceChildren(...(empty ? [welcome()] : chat.messages.map(bubble)));
  box.ariaBusy = String(Boolean(chat.request));
  $("#send").hidden = Boolean(chat.request);
  $("#stop").hidden = !chat.request;
  box.scrollTop = place;
  if (thenToEnd) toEnd();
  showToEnd();
  keep();
}

let drawing = null;

// At most one drawing a frame, however many tokens come. Who has scrolled up to read stays there.
function drawAnswerSoon(message) {
  drawing ??= requestAnimationFrame(() => {
    drawing = null;
    if (!message.pending) return;
    const atEnd = isAtEnd();
    message.node.classList.toggle("streaming", Boolean(message.content));
    renew(message.node, answerBody(message));
    if (atEnd) toEnd();
    showToEnd();
  });
}

// Only what has changed is replaced, so that a selection in what stands above lives on.
function renew(node, fresh) {
  const old = [...node.childNodes];
  const made = [...fresh.childNodes];
  let same = 0;
  while (same < old.length && same < made.length && old[same].isEqualNode(made[same])) same += 1;
  for (const gone of old.slice(same)) gone.remove();
  node.append(...made.slice(same));
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
  area.style.height = `${Math.min(area.scrollHeight, 200)}px`;
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
  if (shown) $("#system").focus();
}

function showToEnd() {
  $("#to-end").hidden = isAtEnd();
}

async function lookAtServer() {
  chat.health = await health();
  if (chat.health === "ready" && !chat.model && chat.triedKey !== apiKey()) {
    chat.triedKey = apiKey();
    chat.model = await modelName(apiKey()).catch(() => null);
  }
  drawHead();
}

function begin() {
  chat.request?.abort();
  Object.assign(chat, { messages: [], request: null, editing: null });
  draw();
  $("#prompt").focus();
}

// Escape closes the settings, or else stops the answer; the arrow up in an empty field edits the last question.
function onKey(event) {
  if (event.key === "Escape" && document.body.classList.contains("with-settings")) {
    showSettings(false);
    $("#toggle-settings").focus();
  } else if (event.key === "Escape" && chat.request) stop();
  else if (event.key === "ArrowUp" && event.target === $("#prompt") && !$("#prompt").value && !chat.request) {
    const last = chat.messages.map(({ role }) => role).lastIndexOf("user");
    if (last >= 0) {
      event.preventDefault();
      edit(last);
    }
  }
}

function listen() {
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
  $("#new").addEventListener("click", begin);
  $("#to-end").addEventListener("click", toEnd);
  $("#messages").addEventListener("scroll", showToEnd, { passive: true });
  $("#toggle-settings").addEventListener("click", () => showSettings(!document.body.classList.contains("with-settings")));
  $("#close-settings").addEventListener("click", () => {
    showSettings(false);
    $("#toggle-settings").focus();
  });
  $("#reset").addEventListener("click", () => {
    for (const { name } of FIELDS) $(`#field-${name}`).value = "";
    keep();
  });
  $("#settings").addEventListener("change", keep);
  $("#api-key").addEventListener("change", lookAtServer);
  document.addEventListener("keydown", onKey);
}

function start() {
  for (const { name, ...limits } of FIELDS) {
    const input = element("input", { id: `field-${name}`, type: "number", ...limits });
    $("#sampling").append(element("label", { htmlFor: input.id }), input);
  }
  drawIcons();
  restore();
  listen();
  translate(() => {
    drawHead();
    draw();
  });
  toEnd();
  lookAtServer();
  setInterval(lookAtServer, HEALTH_EVERY_MS);
  $("#prompt").focus();
}

start();

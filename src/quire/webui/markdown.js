// Markdown to DOM nodes. Text enters the page through text nodes alone, so nothing that a model writes can become markup or code.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*(?=\S)([\s\S]*?\S)\*\*|\*(?=[^\s*])([^*]*?[^\s*])\*|~~(?=\S)([\s\S]*?\S)~~|\[([^\]\n]*)\]\((https?:\/\/[^\s)]+)\)|(https?:\/\/[^\s<>()[\]"'`，。；：！？、]+)/;

const COPIED_MS = 1500;

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export function markdown(text, copyWord) {
  const root = document.createDocumentFragment();
  blocks(text.replace(/\r\n?/g, "\n").split("\n"), root, copyWord);
  return root;
}

function blocks(lines, parent, copyWord) {
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = line.match(FENCE);
    if (!line.trim()) at += 1;
    else if (fence) at = code(lines, at, fence, parent, copyWord);
    else if (RULE.test(line)) {
      parent.append(element("hr"));
      at += 1;
    } else if (HEADING.test(line)) {
      const [, marks, title] = line.match(HEADING);
      parent.append(inline(title, element(`h${Math.min(marks.length + 2, 6)}`)));
      at += 1;
    } else if (line.startsWith(">")) at = quote(lines, at, parent, copyWord);
    else if (ITEM.test(line)) at = list(lines, at, parent, copyWord);
    else if (line.includes("|") && TABLE_RULE.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")) at = table(lines, at, parent);
    else at = paragraph(lines, at, parent);
  }
}

function code(lines, at, [, marks, language], parent, copyWord) {
  let end = at + 1;
  while (end < lines.length && !(lines[end].trim().startsWith(marks) && !lines[end].trim().replaceAll(marks[0], ""))) end += 1;
  const text = lines.slice(at + 1, end).join("\n");
  const button = element("button", { type: "button", className: "copy", textContent: copyWord.copy });
  button.addEventListener("click", () => copyText(text, (name) => { button.textContent = copyWord[name]; }));
  const head = element("div", { className: "code-head" }, element("span", { textContent: language }), button);
  parent.append(element("div", { className: "code" }, head, element("pre", { tabIndex: 0 }, element("code", { textContent: text }))));
  return end + 1;
}

// Copies a text and shows that for a moment: show("copied"), then show("copy").
export async function copyText(text, show) {
  await toClipboard(text);
  show("copied");
  setTimeout(() => show("copy"), COPIED_MS);
}

// The clipboard's own interface exists on https and localhost only; servers are also reached by plain http.
async function toClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = element("textarea", { value: text, className: "hidden" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

function quote(lines, at, parent, copyWord) {
  const inner = [];
  while (at < lines.length && lines[at].startsWith(">")) inner.push(lines[at++].replace(/^> ?/, ""));
  const node = element("blockquote");
  blocks(inner, node, copyWord);
  parent.append(node);
  return at;
}

function list(lines, at, parent, copyWord) {
  const [, indent, mark] = lines[at].match(ITEM);
  const ordered = /\d/.test(mark);
  const node = element(ordered ? "ol" : "ul");
  if (ordered) node.start = parseInt(mark, 10);
  while (at < lines.length) {
    const item = lines[at].match(ITEM);
    if (!item || item[1].length !== indent.length || /\d/.test(item[2]) !== ordered) break;
    const width = item[1].length + item[2].length + 1;
    const inner = [item[3]];
    at += 1;
    while (at < lines.length && (lines[at].search(/\S/) > indent.length || (!lines[at].trim() && (lines[at + 1] ?? "").search(/\S/) > indent.length))) {
      inner.push(lines[at].slice(Math.min(width, Math.max(lines[at].search(/\S/), 0))));
      at += 1;
    }
    const entry = element("li");
    blocks(inner, entry, copyWord);
    if (entry.children.length && entry.firstChild.tagName === "P") entry.firstChild.replaceWith(...entry.firstChild.childNodes);
    node.append(entry);
    while (at < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1] ?? "")) at += 1;
  }
  parent.append(node);
  return at;
}

function table(lines, at, parent) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (line, tag) => element("tr", {}, ...cells(line).map((cell) => inline(cell, element(tag))));
  const body = element("tbody");
  const node = element("table", {}, element("thead", {}, row(lines[at], "th")), body);
  at += 2;
  while (at < lines.length && lines[at].includes("|")) body.append(row(lines[at++], "td"));
  parent.append(element("div", { className: "table", tabIndex: 0 }, node));
  return at;
}

function paragraph(lines, at, parent) {
  const inner = [];
  do inner.push(lines[at++]);
  while (at < lines.length && lines[at].trim() && ![FENCE, HEADING, ITEM, RULE].some((kind) => kind.test(lines[at])) && !lines[at].startsWith(">"));
  parent.append(inline(inner.join("\n"), element("p")));
  return at;
}

function inline(text, node) {
  let rest = text;
  for (let found = rest.match(INLINE); found; found = rest.match(INLINE)) {
    node.append(rest.slice(0, found.index));
    const [whole, , code, bold, italic, struck, title, link, bare] = found;
    if (code !== undefined) node.append(element("code", { textContent: code }));
    else if (bold !== undefined) node.append(inline(bold, element("strong")));
    else if (italic !== undefined) node.append(inline(italic, element("em")));
    else if (struck !== undefined) node.append(inline(struck, element("del")));
    else node.append(element("a", { href: link ?? bare, textContent: title || link || bare, target: "_blank", rel: "noopener noreferrer" }));
    rest = rest.slice(found.index + whole.length);
  }
  node.append(rest);
  return node;
}

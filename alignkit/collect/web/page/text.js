"use strict";
// Turn the text of models into DOM nodes. Nothing here parses HTML: every string becomes text, and
// no attribute that could load or link is set. The server has already spelled out control and
// invisible characters as ⟨U+202E⟩; here they only get a style of their own.

const SPELLED = /(⟨U\+[0-9A-F]{4,6}⟩)/;

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function plainNodes(text) {
  return text.split(SPELLED).filter(Boolean).map((part) =>
    SPELLED.test(part)
      ? element("span", { class: "unseen", title: "an invisible or control character" }, part)
      : document.createTextNode(part));
}

function rawText(text) {
  return element("div", { class: "raw" }, ...plainNodes(text));
}

// One row per mark: its pattern, and how its content becomes nodes. The first match in the text wins.
// Every repetition is bounded: hostile text may look wrong, but is never slow.
const INLINE = [
  [/`{2}([^\n]{1,500}?)`{2}|`([^`\n]{1,500})`/g, (m) => element("code", {}, ...plainNodes(m[1] ?? m[2]))],
  [/!\[([^\]\n]{0,300})\]\(([^)\s]{1,1000})[^)\n]{0,100}\)/g, (m) => linked(`image: ${m[1]}`, m[2])],
  [/\[([^\]\n]{1,300})\]\(([^)\s]{1,1000})[^)\n]{0,100}\)/g, (m) => linked(m[1], m[2])],
  [/\*\*(?=[^\s*])([^\n]{0,500}?\S)\*\*|__(?=[^\s_])([^\n]{0,500}?\S)__/g, (m, depth) => element("strong", {}, ...inlineNodes(m[1] ?? m[2], depth))],
  [/\*(?=[^\s*])([^*\n]{0,500}?\S)\*|(?<!\w)_(?=[^\s_])([^_\n]{0,500}?\S)_(?!\w)/g, (m, depth) => element("em", {}, ...inlineNodes(m[1] ?? m[2], depth))],
  [/~~(?=[^\s~])([^\n]{0,500}?\S)~~/g, (m, depth) => element("s", {}, ...inlineNodes(m[1], depth))],
];
const DEEPEST = 6;

// A link shows its target but is not clickable: nothing may leave the page or contact anybody.
function linked(label, target) {
  return element("span", { class: "linked" }, ...plainNodes(label),
    element("span", { class: "target" }, "(", ...plainNodes(target), ")"));
}

function inlineNodes(text, depth = 0) {
  if (depth > DEEPEST) return plainNodes(text);
  const nodes = [];
  // Each pattern remembers its next match and searches again only after passing it.
  const next = INLINE.map(() => undefined);
  let at = 0;
  for (;;) {
    INLINE.forEach(([pattern], row) => {
      if (next[row] === null || next[row]?.index >= at) return;
      pattern.lastIndex = at;
      next[row] = pattern.exec(text);
    });
    const row = next.reduce((best, match, index) => match && (best < 0 || match.index < next[best].index) ? index : best, -1);
    if (row < 0) return nodes.concat(plainNodes(text.slice(at)));
    const match = next[row];
    nodes.push(...plainNodes(text.slice(at, match.index)), INLINE[row][1](match, depth + 1));
    at = match.index + match[0].length;
  }
}

const LIST = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const FENCE = /^\s{0,3}(`{3,}|~{3,})\s*([^\s`]*)/;
const TABLE_RULE = /^[\s|:-]+$/;
const LONGEST_RENDERED = 200000;

// Render the common part of Markdown: headings, lists, quotes, tables, code, emphasis.
function renderedText(text) {
  if (text.length > LONGEST_RENDERED) return rawText(text);
  return element("div", { class: "rendered" }, ...blocks(text.split("\n")));
}

function blocks(lines, depth = 0) {
  if (depth > DEEPEST) return [rawText(lines.join("\n"))];
  const nodes = [];
  for (let at = 0; at < lines.length;) {
    const [node, next] = block(lines, at, depth);
    if (node) nodes.push(node);
    at = next;
  }
  return nodes;
}

function block(lines, at, depth) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  if (FENCE.test(line)) return fenced(lines, at);
  const heading = /^\s{0,3}(#{1,6})\s+(.*?)\s*#*\s*$/.exec(line);
  // The page uses h1 and h2; headings of a completion start below them for screen readers.
  if (heading) return [element(`h${Math.min(6, heading[1].length + 2)}`, {}, ...inlineNodes(heading[2])), at + 1];
  if (/^\s{0,3}([-*_])(\s*\1){2,}\s*$/.test(line)) return [element("hr"), at + 1];
  if (/^\s{0,3}>/.test(line)) return quoted(lines, at, depth);
  if (LIST.test(line)) return listed(lines, at, depth);
  if (line.includes("|") && lines[at + 1]?.includes("|") && lines[at + 1].includes("-") && TABLE_RULE.test(lines[at + 1])) return tabled(lines, at);
  return paragraph(lines, at);
}

function fenced(lines, at) {
  const [, marks, language] = FENCE.exec(lines[at]);
  let end = at + 1;
  while (end < lines.length && !lines[end].trim().startsWith(marks)) end += 1;
  const code = element("code", {}, ...plainNodes(lines.slice(at + 1, end).join("\n")));
  const pre = element("pre", { tabindex: "0", "aria-label": language ? `code, ${language}` : "code" }, code);
  return [pre, end + 1];
}

function quoted(lines, at, depth) {
  let end = at;
  while (end < lines.length && /^\s{0,3}>/.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(/^\s{0,3}>\s?/, ""));
  return [element("blockquote", {}, ...blocks(inner, depth + 1)), end];
}

function listed(lines, at, depth) {
  const [, indent, number] = LIST.exec(lines[at]);
  const list = element(number ? "ol" : "ul", number ? { start: number } : {});
  let end = at;
  while (end < lines.length) {
    const match = LIST.exec(lines[end]);
    if (!match || match[1].length < indent.length || Boolean(match[2]) !== Boolean(number)) break;
    let next = end + 1;
    // Lines indented deeper than the marker belong to this entry, nested lists included.
    while (next < lines.length && lines[next].trim() && /^\s*/.exec(lines[next])[0].length > indent.length) next += 1;
    const inner = lines.slice(end + 1, next).map((line) => line.slice(indent.length + 2));
    list.append(element("li", {}, ...inlineNodes(match[3]), ...blocks(inner, depth + 1)));
    end = next;
    if (!(lines[end] ?? "x").trim() && LIST.test(lines[end + 1] ?? "")) end += 1;
  }
  return [list, end];
}

function tabled(lines, at) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (line, name) => element("tr", {}, ...cells(line).map((cell) => element(name, {}, ...inlineNodes(cell))));
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && lines[end].trim()) end += 1;
  const body = lines.slice(at + 2, end).map((line) => row(line, "td"));
  const table = element("table", {}, element("thead", {}, row(lines[at], "th")), element("tbody", {}, ...body));
  return [element("div", { class: "wide", tabindex: "0" }, table), end];
}

function paragraph(lines, at) {
  let end = at + 1;
  const starts = (line) => FENCE.test(line) || LIST.test(line) || /^\s{0,3}(>|#{1,6}\s)/.test(line);
  while (end < lines.length && lines[end].trim() && !starts(lines[end])) end += 1;
  const nodes = lines.slice(at, end).flatMap((line, index) => index ? [element("br"), ...inlineNodes(line.trim())] : inlineNodes(line.trim()));
  return [element("p", {}, ...nodes), end];
}

"use strict";
// The ranking page: the screen is a function of `state` and the fields of the form.

class Refused extends Error {
  constructor(message, status) { super(message); this.status = status; }
}
class Unreachable extends Error {}

const $ = (id) => document.getElementById(id);
const IDLE_MS = 60000; // a minute without key, scroll or pointer movement counts as away
const PENDING = "alignkit-pending:"; // votes being sent, kept until the server has stored them

let state = null; // the last screen from the source
let key = null; // identifies the vote on the shown item, in this tab
let busy = false;
let shownAt = 0;
let active = 0;
let lastTick = 0;
let lastSign = 0;

// ---------------------------------------------------------------- browser storage

const memory = {
  // A browser may refuse storage (private mode, file://): the page still works, but forgets.
  get(store, name) { try { return store.getItem(name); } catch { return null; } },
  set(store, name, value) { try { store.setItem(name, value); } catch { /* see above */ } },
  remove(store, name) { try { store.removeItem(name); } catch { /* see above */ } },
  keys(store) { try { return Object.keys(store); } catch { return []; } },
};
const local = (() => { try { return window.localStorage; } catch { return null; } })();
const tab = (() => { try { return window.sessionStorage; } catch { return null; } })();

function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

// ---------------------------------------------------------------- the order, as it is typed

const places = () => state?.item?.answers.length ?? 0;

// Return [[2], [1, 3]] for "2>1=3", or a problem in words. The server parses the text again.
function readOrder(text) {
  const levels = [];
  const seen = new Set();
  let mark = "";
  for (const sign of text.replace(/\s/g, "")) {
    if (sign === ">" || sign === "=") {
      if (mark || !levels.length) return { problem: `“${sign}” has no number before it.` };
      mark = sign;
      continue;
    }
    const named = sign === "*"
      ? Array.from({ length: places() }, (_, index) => index + 1).filter((place) => !text.includes(String(place)))
      : [Number(sign)];
    if (sign !== "*" && !(named[0] >= 1 && named[0] <= places())) return { problem: `“${sign}” is not one of 1 to ${places()}.` };
    if (seen.has(sign)) return { problem: `${sign} occurs twice.` };
    if (!named.length) return { problem: "“*” means all the others, but every place is named." };
    seen.add(sign);
    if (mark === "=") levels.at(-1).push(...named); else levels.push(named);
    mark = "";
  }
  const named = levels.flat();
  if (places() === 2 && named.length === 1) levels.push([3 - named[0]]);
  return { levels, open: Boolean(mark), named: levels.flat().length };
}

function placeRanks(levels) {
  const ranks = new Map();
  levels.forEach((level, index) => level.forEach((place) => ranks.set(place, { rank: index + 1, tied: level.length > 1 })));
  return ranks;
}

const ORDINAL = ["", "1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th", "9th"];

function orderChanged() {
  const text = $("order").value;
  const order = readOrder(text);
  const ranks = order.levels ? placeRanks(order.levels) : new Map();
  for (const card of document.querySelectorAll(".completion")) {
    const entry = ranks.get(Number(card.dataset.place));
    card.dataset.rank = entry?.rank ?? "";
    card.querySelector(".place").textContent = entry ? ORDINAL[entry.rank] + (entry.tied ? ", tied" : "") : "";
    card.querySelector(".pick").setAttribute("aria-pressed", String(Boolean(entry)));
  }
  $("reading").textContent = order.levels?.length ? order.levels.map((level) => level.join(" = ")).join("  >  ") : "";
  $("problem").textContent = order.problem ?? "";
  keepDraft();
  return order;
}

function typeMark(sign) {
  const field = $("order");
  const text = field.value;
  const joins = /[1-9*]/.test(sign) && /[1-9*]$/.test(text) ? ">" : "";
  if (/[1-9]/.test(sign)) {
    if (Number(sign) > places()) return;
    // Between two completions one number is the whole order: typing the other replaces it.
    if (places() === 2 && joins) field.value = "";
    else if (text.includes(sign)) return;
  }
  if (/[>=]/.test(sign)) field.value = text.replace(/[>=]+$/, "");
  field.value += (field.value ? joins : "") + sign;
  orderChanged();
}

function removeMark() {
  const field = $("order");
  field.value = field.value.replace(/[>=]?\s*[1-9*]?\s*[>=]?$/, (end) => /[>=]$/.test(end) && /[1-9*]/.test(end) ? end.slice(0, -1) : "");
  orderChanged();
}

function tieAll() {
  $("order").value = Array.from({ length: places() }, (_, index) => index + 1).join("=");
  orderChanged();
}

function press(button, on) { button.setAttribute("aria-pressed", String(on)); }
const pressed = (button) => button.getAttribute("aria-pressed") === "true";

function strength() {
  const chosen = document.querySelector("input[name=strength]:checked");
  return chosen ? Number(chosen.value) : null;
}

function setStrength(value) {
  for (const radio of document.querySelectorAll("input[name=strength]")) radio.checked = Number(radio.value) === value;
  keepDraft();
}

// ---------------------------------------------------------------- showing

function show(next, { focus = true } = {}) {
  state = next;
  const { item, progress, annotator } = next;
  $("annotator").textContent = annotator;
  $("bar").max = Math.max(1, progress.total);
  $("bar").value = progress.done;
  $("count").textContent = `${progress.done} of ${progress.total}`;
  $("undo").disabled = !next.undo;
  $("main").setAttribute("aria-busy", "false");
  for (const id of ["order", "tie", "all-bad", "comment", "skip", "flag", "save"]) $(id).disabled = !item;
  $("strength").disabled = !item;
  $("finish").hidden = Boolean(item);
  $("vote").classList.toggle("idle", !item);
  $("download").hidden = !source.offline || !progress.mine;
  clearFields();
  if (item) showItem(item); else showEnd(progress);
  document.title = item ? `${progress.done + 1} of ${progress.total} · Ranking` : "Done · Ranking";
  startClock();
  if (focus) { $("heading").focus({ preventScroll: true }); window.scrollTo(0, 0); }
}

function showItem(item) {
  const many = item.answers.length;
  const task = many === 2 ? "which completion is better?" : `rank the ${many} completions`;
  $("heading").textContent = `Item ${Math.min(state.progress.done + 1, state.progress.total)}: ${task}`;
  $("conversation").replaceChildren(...item.prompt.map((turn) => turnNode(turn)));
  $("completions").dataset.many = String(many);
  $("completions").replaceChildren(...item.answers.map(completionNode));
  key = memory.get(tab, `key:${item.ticket}`) ?? uuid();
  memory.set(tab, `key:${item.ticket}`, key);
  restoreDraft(item.ticket);
}

function showEnd(progress) {
  $("heading").textContent = progress.mine ? "All done. Thank you." : "There is nothing to rank.";
  $("conversation").replaceChildren();
  $("completions").replaceChildren();
  const advice = source.offline ? "Download your votes and send the file back." : "Everything is saved. You can close this page.";
  $("finish-text").textContent = `You ranked ${progress.mine} ${progress.mine === 1 ? "item" : "items"}. ${advice}`;
  key = null;
}

function bodyOf(text) {
  return pressed($("markdown")) ? renderedText(text) : rawText(text);
}

function turnNode(turn) {
  return element("article", { class: `turn ${turn.role.split(" ")[0]}` },
    element("span", { class: "role" }, turn.role), bodyOf(turn.text));
}

function completionNode(turns, index) {
  const place = index + 1;
  const pick = element("button", { type: "button", class: "pick", "aria-pressed": "false", "aria-label": `Place completion ${place} next` }, String(place));
  pick.addEventListener("click", () => typeMark(String(place)));
  const bodies = turns.length === 1 && turns[0].role === "assistant" ? [bodyOf(turns[0].text)] : turns.map((turn) => turnNode(turn));
  return element("article", { class: "completion", "data-place": place, "aria-labelledby": `completion-${place}` },
    element("header", {}, pick, element("h2", { id: `completion-${place}` }, `Completion ${place}`), element("span", { class: "place" })),
    element("div", { class: "text" }, ...bodies));
}

function redraw() {
  if (!state?.item) return;
  $("conversation").replaceChildren(...state.item.prompt.map((turn) => turnNode(turn)));
  $("completions").replaceChildren(...state.item.answers.map(completionNode));
  orderChanged();
}

// ---------------------------------------------------------------- drafts survive a reload

function clearFields() {
  $("order").value = "";
  $("comment").value = "";
  press($("all-bad"), false);
  for (const radio of document.querySelectorAll("input[name=strength]")) radio.checked = false;
}

function keepDraft() {
  if (!state?.item) return;
  const draft = { order: $("order").value, comment: $("comment").value, all_bad: pressed($("all-bad")), strength: strength() };
  memory.set(tab, `draft:${state.item.ticket}`, JSON.stringify(draft));
}

function restoreDraft(ticket) {
  const saved = memory.get(tab, `draft:${ticket}`);
  const draft = saved ? JSON.parse(saved) : state.previous;
  if (draft) {
    $("order").value = draft.order;
    $("comment").value = draft.comment;
    press($("all-bad"), draft.all_bad);
    setStrength(draft.strength);
  }
  orderChanged();
}

function forget(ticket) {
  memory.remove(tab, `draft:${ticket}`);
  memory.remove(tab, `key:${ticket}`);
}

// ---------------------------------------------------------------- reading time

function startClock() {
  shownAt = lastTick = lastSign = performance.now();
  active = 0;
}

function tick() {
  const now = performance.now();
  if (document.visibilityState === "visible" && document.hasFocus() && now - lastSign < IDLE_MS) active += now - lastTick;
  lastTick = now;
}

setInterval(tick, 500);
for (const sign of ["keydown", "pointermove", "pointerdown", "wheel", "scroll", "touchstart"]) {
  window.addEventListener(sign, () => { tick(); lastSign = performance.now(); }, { passive: true });
}

// ---------------------------------------------------------------- saving

function say(text) { $("status").textContent = text; }
function complain(text) { $("problem").textContent = text; }
const pause = (ms) => new Promise((done) => { setTimeout(done, ms); });

// Two annotators may share a browser: each sends only their own votes.
const leftoverName = (name) => `${PENDING}${state.annotator}:${name}`;

// Send until the source stores or refuses it; a pending vote survives a reload.
async function deliver(send, body) {
  const name = leftoverName(body.key);
  memory.set(local, name, JSON.stringify(body));
  for (let wait = 250; ; wait = Math.min(wait * 2, 5000)) {
    try {
      const screen = await send(body);
      memory.remove(local, name);
      return screen;
    } catch (error) {
      if (error instanceof Refused) {
        // A full disk or an old link can be fixed; anything else would be refused again.
        if (error.status !== 507 && error.status !== 403) memory.remove(local, name);
        throw error;
      }
      if (!(error instanceof Unreachable)) throw error;
      complain("Not saved yet: the server does not respond. Retrying; keep this page open.");
      await pause(wait);
    }
  }
}

async function working(job) {
  if (busy) return;
  busy = true;
  document.body.classList.add("busy");
  try {
    await job();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    await refused(error);
  } finally {
    busy = false;
    document.body.classList.remove("busy");
  }
}

async function refused(error) {
  if (error.status === 409) {
    if (state?.item) forget(state.item.ticket);
    show(await source.next());
    say(`Not saved again. ${error.message}`);
    return;
  }
  complain(error.status === 507 ? `Not saved. ${error.message}` : error.message);
}

function act(action, reason = null) {
  if (!state?.item) return Promise.resolve();
  const ranked = action === "rank";
  if (ranked) {
    const order = orderChanged();
    const problem = orderProblem(order);
    if (problem) { complain(problem); return Promise.resolve(); }
  }
  tick();
  const body = {
    key, ticket: state.item.ticket, action, reason,
    order: ranked ? $("order").value : "", all_bad: ranked && pressed($("all-bad")),
    strength: ranked ? strength() : null, comment: $("comment").value,
    active_ms: Math.round(active), wall_ms: Math.round(performance.now() - shownAt),
  };
  return working(async () => {
    const screen = await deliver(source.vote, body);
    forget(body.ticket);
    show(screen);
    say(CONFIRMATIONS[action](screen.saved));
  });
}

function orderProblem(order) {
  if (order.problem) return order.problem;
  if (pressed($("all-bad")) && !$("order").value.trim()) return "";
  if (!order.named) return places() === 2 ? "Press 1 or 2, or 0 for a tie." : "Type the numbers, best first: 2>1=3.";
  if (order.open) return "The order ends in > or =; a number is missing.";
  return order.named < 2 ? "One number alone compares nothing; * means all the others." : "";
}

const lengths = (characters) => characters.map((count, index) => `completion ${index + 1}: ${count.toLocaleString("en")}`).join(", ");
const CONFIRMATIONS = {
  rank: (saved) => `Saved. Characters: ${lengths(saved.characters)}.`,
  skip: () => "Skipped and saved.",
  flag: () => "Flagged and saved.",
};

function undo() {
  if (!state?.undo) return Promise.resolve();
  const body = { key: uuid(), target: state.undo };
  return working(async () => {
    show(await deliver(source.undo, body));
    say("Undone. Change it and save again.");
  });
}

// Send votes that an earlier page of this browser could not send; return their number.
async function deliverLeftovers() {
  const names = memory.keys(local).filter((name) => name.startsWith(leftoverName("")));
  for (const name of names) {
    const body = JSON.parse(memory.get(local, name));
    try {
      await deliver("target" in body ? source.undo : source.vote, body);
      if (body.ticket) forget(body.ticket);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
    }
  }
  return names.length;
}

async function firstScreen() {
  for (let wait = 250; ; wait = Math.min(wait * 2, 5000)) {
    try {
      return await source.next();
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      complain("The server does not respond. Retrying.");
      await pause(wait);
    }
  }
}

// ---------------------------------------------------------------- reasons, help, view

let whyAction = "skip";

const WHY = {
  skip: ["Skip this item", "Why? (optional)"],
  flag: ["Flag this item", "What is wrong with it?"],
};

function askWhy(action) {
  if (!state?.item || busy) return;
  whyAction = action;
  [$("why-title").textContent, $("why-label").textContent] = WHY[action];
  $("why-text").value = "";
  $("why-text").required = action === "flag";
  $("why").showModal();
  $("why-text").focus();
}

function whyDone(event) {
  event.preventDefault();
  const reason = $("why-text").value.trim();
  if (whyAction === "flag" && !reason) { $("why-text").focus(); return; }
  $("why").close();
  act(whyAction, reason || null);
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  $("theme").textContent = dark ? "Light" : "Dark";
  return dark;
}

function toggleTheme() {
  const theme = setTheme(document.documentElement.dataset.theme) ? "light" : "dark";
  setTheme(theme);
  memory.set(local, "alignkit-theme", theme);
}

function setMarkdown(on) {
  press($("markdown"), on);
  $("markdown").textContent = on ? "Raw" : "Rendered";
  $("markdown").setAttribute("aria-label", "Rendered Markdown");
}

function toggleMarkdown() {
  setMarkdown(!pressed($("markdown")));
  memory.set(local, "alignkit-markdown", String(pressed($("markdown"))));
  redraw();
}

function nextStrength(step) {
  const value = Math.max(0, Math.min(4, (strength() ?? 0) + step));
  setStrength(value || null);
}

function toggleAllBad() {
  press($("all-bad"), !pressed($("all-bad")));
  orderChanged();
}

// ---------------------------------------------------------------- keys

const KEYS = {
  "=": () => typeMark("="), ">": () => typeMark(">"), "*": () => typeMark("*"),
  Backspace: removeMark, 0: tieAll, t: tieAll, b: toggleAllBad,
  "+": () => nextStrength(1), "-": () => nextStrength(-1),
  Enter: () => act("rank"), c: () => $("comment").focus(),
  s: () => askWhy("skip"), f: () => askWhy("flag"), u: undo,
  m: toggleMarkdown, d: toggleTheme, "?": () => $("keys").showModal(),
};
for (let place = 1; place <= 9; place += 1) KEYS[place] = () => typeMark(String(place));

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); act("rank"); }
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  const at = event.target;
  if (at.matches("textarea, input:not([type=radio]):not([type=checkbox])")) { inField(event, at); return; }
  if (event.key === "Enter" && at.matches("button, a, summary")) return;
  if (!$("single").checked && event.key !== "Enter") return;
  const run = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!run || event.repeat) return;
  event.preventDefault();
  run();
}

// Inside a field letters are text; Esc leaves the field, Enter in the order field saves.
function inField(event, field) {
  if (event.key === "Escape") { event.preventDefault(); $("heading").focus(); }
  if (event.key === "Enter" && field.id === "order") { event.preventDefault(); act("rank"); }
}

// ---------------------------------------------------------------- start

document.addEventListener("keydown", onKey);
$("vote").addEventListener("submit", (event) => { event.preventDefault(); act("rank"); });
$("order").addEventListener("input", orderChanged);
$("comment").addEventListener("input", keepDraft);
$("strength").addEventListener("change", keepDraft);
$("tie").addEventListener("click", tieAll);
$("all-bad").addEventListener("click", toggleAllBad);
$("undo").addEventListener("click", undo);
$("skip").addEventListener("click", () => askWhy("skip"));
$("flag").addEventListener("click", () => askWhy("flag"));
$("why").querySelector("form").addEventListener("submit", whyDone);
$("why-cancel").addEventListener("click", () => $("why").close());
$("why-text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) whyDone(event);
});
$("help").addEventListener("click", () => $("keys").showModal());
$("theme").addEventListener("click", toggleTheme);
$("markdown").addEventListener("click", toggleMarkdown);
$("single").checked = memory.get(local, "alignkit-single") !== "false";
$("single").addEventListener("change", () => memory.set(local, "alignkit-single", String($("single").checked)));
$("download").addEventListener("click", () => source.download?.());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(document.documentElement.dataset.theme));

setTheme(memory.get(local, "alignkit-theme"));
setMarkdown(memory.get(local, "alignkit-markdown") !== "false");

working(async () => {
  state = await firstScreen();
  const late = await deliverLeftovers();
  show(late ? await source.next() : state);
  if (late) say("A vote that had not been sent is saved now.");
});

"use strict";
// The source without a server: items come from this file, votes leave it as a download.
// It implements the three calls of server.js on the items embedded in the page. This file only
// decides what to show next; `alignkit rank import` checks and interprets the votes.

const task = JSON.parse(document.getElementById("task").textContent);
const STORE = `alignkit-answers:${task.id}`;
const byTicket = new Map(task.items.map((item) => [item.ticket, item]));
const acts = (() => {
  try { return JSON.parse(window.localStorage.getItem(STORE)) ?? []; } catch { return []; }
})();

function remember() {
  try { window.localStorage.setItem(STORE, JSON.stringify(acts)); return true; } catch { return false; }
}

function standing() {
  const undone = new Set(acts.filter((act) => act.action === "undo").map((act) => act.target));
  return acts.filter((act) => act.action !== "undo" && !undone.has(act.key));
}

function reopened() {
  const done = new Set(standing().map((act) => act.ticket));
  const undone = acts.filter((act) => act.action === "undo").map((act) => acts.find((other) => other.key === act.target));
  return undone.reverse().find((act) => act && !done.has(act.ticket)) ?? null;
}

function following() {
  const acts = standing();
  const done = new Set(acts.map((act) => act.ticket));
  const voted = new Set(acts.filter((act) => act.action === "rank").map((act) => act.ticket));
  // Repeat an item only if it was ranked the first time.
  return task.items.find((item) => !done.has(item.ticket) && (!item.repeats || voted.has(item.repeats))) ?? null;
}

function screen() {
  const stands = standing();
  const previous = reopened();
  const item = previous ? byTicket.get(previous.ticket) : following();
  return {
    item: item ? { ticket: item.ticket, prompt: item.prompt, answers: item.answers } : null,
    previous: previous && { order: previous.order, all_bad: previous.all_bad, strength: previous.strength, comment: previous.comment },
    progress: { done: stands.length, total: task.items.length, mine: stands.filter((act) => act.action === "rank").length },
    undo: stands.at(-1)?.key ?? null,
    annotator: task.annotator,
  };
}

function store(act) {
  if (!acts.some((other) => other.key === act.key)) acts.push({ ...act, ts: new Date().toISOString() });
  if (!remember()) document.getElementById("problem").textContent = "This browser cannot store your votes: download them before you close the page.";
}

const source = {
  offline: true,
  next: async () => screen(),
  vote: async (body) => {
    const item = byTicket.get(body.ticket);
    if (!item) throw new Refused("This item is not in this file.", 400);
    const earlier = standing().find((act) => act.ticket === body.ticket && act.key !== body.key);
    if (earlier) throw new Refused("This item is already done.", 409);
    store({ ...body, text: item.text });
    const lengths = item.answers.map((turns) => turns.reduce((sum, turn) => sum + Array.from(turn.text).length, 0));
    return { saved: { id: body.key, stored: "saved", characters: lengths }, ...screen() };
  },
  undo: async (body) => {
    store({ action: "undo", ...body });
    return { undone: body.target, ...screen() };
  },
  download: () => {
    const { items, ...head } = task;
    const blob = new Blob([JSON.stringify({ ...head, acts }, null, 1)], { type: "application/json" });
    const link = element("a", { href: URL.createObjectURL(blob), download: `answers-${task.annotator.replace(/[^\w.-]+/g, "_")}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  },
};

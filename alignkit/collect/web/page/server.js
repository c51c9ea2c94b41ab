"use strict";
// Where items come from and answers go to: the server that sent this page.
// A source has next(), vote(body), undo(body); each resolves to what to show, or throws Refused
// (the answer will never be taken) or Unreachable (it may be taken later).

class Refused extends Error {
  constructor(message, status) { super(message); this.status = status; }
}
class Unreachable extends Error {}

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, { ...options, credentials: "same-origin", cache: "no-store" });
  } catch {
    throw new Unreachable("The server does not answer.");
  }
  if (response.ok) return response.json();
  const text = await response.text();
  let message = text.trim();
  try { message = JSON.parse(text).error; } catch { /* plain text already says it */ }
  throw new Refused(message, response.status);
}

const source = {
  offline: false,
  next: () => call("/api/next"),
  vote: (body) => call("/api/vote", body),
  undo: (body) => call("/api/undo", body),
};

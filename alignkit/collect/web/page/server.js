"use strict";
// The source of items and the destination of votes: the server that sent this page.
// A source has next(), vote(body) and undo(body). Each resolves to the next screen, or throws
// Refused (the vote will never be accepted) or Unreachable (it may be accepted later).

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, { ...options, credentials: "same-origin", cache: "no-store" });
  } catch {
    throw new Unreachable("The server does not respond.");
  }
  if (response.ok) return response.json();
  const text = await response.text();
  let message = text.trim();
  try { message = JSON.parse(text).error; } catch { /* plain text is the message */ }
  throw new Refused(message, response.status);
}

const source = {
  offline: false,
  next: () => call("/api/next"),
  vote: (body) => call("/api/vote", body),
  undo: (body) => call("/api/undo", body),
};

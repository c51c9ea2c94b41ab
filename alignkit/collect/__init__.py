"""Collect rankings and verdicts of people: items, sessions, the event log, page and terminal."""

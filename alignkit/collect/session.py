"""Run the session that the terminal and the page share: what to show next, and what to store.

A `Collection` is one log and one pool of items; a `Session` is one annotator working on it. All
state is rebuilt from the log, so a session resumes where it was killed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal

from alignkit.collect.choice import (
    SequentialTest,
    has_scores,
    outcome,
    sequential_test_of,
    worth_asking,
)
from alignkit.collect.items import Item, Pool, Presentation, present, ticket_of
from alignkit.collect.log import VOTES, Conflict, EventLog, Stored, new_id, now
from alignkit.collect.order import order_text, parse_order
from alignkit.collect.plan import Settings, Showing, plan_for
from alignkit.collect.secret import Marks, ensure_secret, readable_by_others, secret_file
from alignkit.data.records import Event
from alignkit.errors import DataError, RecipeError
from alignkit.store.visible import visible_line

STRENGTHS = (1, 2, 3, 4)
LONGEST_COMMENT = 10_000
# For how long an item on an annotator's screen counts towards its overlap.
LEASE_SECONDS = 900.0
# Nobody reads one item for a day; a larger number comes from a wrong clock.
LONGEST_MS = 24 * 3600 * 1000
_KEY = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

Action = Literal["rank", "skip", "flag"]


@dataclass(frozen=True)
class Submission:
    """What an annotator did with one showing, as the terminal or the page sends it.

    `key` identifies the act: sent twice, it has the same key. `order` is in places, `2>1=3`.
    """

    key: str
    ticket: str
    action: Action = "rank"
    order: str = ""
    all_bad: bool = False
    strength: int | None = None
    comment: str = ""
    reason: str | None = None
    active_ms: int | None = None
    wall_ms: int | None = None


@dataclass(frozen=True)
class Receipt:
    """Proof that a submission is on disk; an undo names its `event_id`."""

    event_id: str
    stored: Stored


@dataclass(frozen=True)
class AnnotatorProgress:
    """Showings `done` of `total`, and `mine`, the annotator's own votes."""

    done: int
    total: int
    mine: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A standing act, with everything needed to show it again after an undo."""

    event_id: str
    showing: Showing
    voted: bool
    order: str
    all_bad: bool
    strength: int | None
    comment: str


@dataclass
class Collection:
    """One log, one pool of items, and the sessions of its annotators."""

    pool: Pool
    log: EventLog
    settings: Settings
    stop_when_decided: bool = False
    sessions: dict[str, Session] = field(default_factory=dict)
    voters: dict[str, dict[str, Mapping[str, int]]] = field(default_factory=dict)
    reports: list[str] = field(default_factory=list)
    test: SequentialTest | None = None
    marks: Marks | None = None  # by default those of the secret next to the log

    def __post_init__(self) -> None:
        if self.stop_when_decided:
            if self.settings.order != "random":
                raise RecipeError(
                    "stopping early needs an order of items that does not depend on scores",
                    hint="Add --order random",
                )
            self.test = sequential_test_of(self.pool.items.values())
        if self.marks is None:
            self.marks = Marks(self.settings.seed, ensure_secret(self.log.path))
            if readable_by_others(self.log.path):
                file = secret_file(self.log.path)
                self.reports.append(
                    f"{file}: other users of this machine can read it; run chmod 600"
                )
        self._replay()
        for name in self.settings.annotators:
            self.session(name)

    def session(self, annotator: str) -> Session:
        """Return the one session of this annotator."""
        if annotator not in self.sessions:
            self.sessions[annotator] = Session(self, check_annotator(annotator))
        return self.sessions[annotator]

    def needs_vote(self, item_id: str, annotator: str) -> bool:
        """Return whether the item still needs this annotator's vote."""
        overlap = self.settings.overlap
        if overlap is None or self.settings.assign != "open":
            return True
        others = set(self.voters.get(item_id, {})) | {
            name for name, session in self.sessions.items() if session.is_working_on(item_id)
        }
        return len(others - {annotator}) < overlap

    @property
    def enough(self) -> bool:
        """Return whether the votes already decide between the two models."""
        return self.test is not None and self.test.decided

    def count(self, item: Item, annotator: str, ranks: Mapping[str, int] | None) -> None:
        """Count an annotator's vote on an item; None takes it back."""
        votes = self.voters.setdefault(item.id, {})
        if ranks is None:
            votes.pop(annotator, None)
            self._recount()
            return
        votes[annotator] = ranks if self.test else _COUNTED
        # One outcome per item: two annotators on one item are not two independent draws.
        if len(votes) == 1:
            self._add_outcome(item, ranks)

    def _add_outcome(self, item: Item, ranks: Mapping[str, int]) -> None:
        value = outcome(item, ranks, self.test) if self.test else None
        if self.test and value is not None:
            self.test.add(value)

    def _recount(self) -> None:
        if self.test is None:
            return
        self.test.restart()
        for name, votes in self.voters.items():
            if votes:
                self._add_outcome(self.pool.items[name], next(iter(votes.values())))

    def summary(self) -> list[str]:
        """Return lines on the votes collected and on the items still worth a vote."""
        voted = [name for name, votes in self.voters.items() if votes]
        lines = [f"{len(voted)} of {len(self.pool.items)} items have a vote"]
        open_items = [item for name, item in self.pool.items.items() if not self.voters.get(name)]
        if open_items and all(has_scores(item) for item in open_items):
            worth = worth_asking(open_items)
            lines.append(f"{worth} more are worth a vote: the scores leave their order uncertain")
        if self.test and self.test.n:
            lines.append(_test_line(self.test))
        return lines

    def _replay(self) -> None:
        changed: set[str] = set()
        for event in self.log.replay():
            item = self.pool.items.get(event.item)
            if item is None or (event.item_sha256 or item.sha256) != item.sha256:
                changed.add(event.item)
                continue
            self.session(event.annotator).replay(event, item)
        if changed:
            self.reports.append(
                f"{self.log.path}: {len(changed)} ranked items, {sorted(changed)[0]!r} among them,"
                " are missing in the candidates or have other texts there; their votes stay in"
                " the file but do not count here"
            )


class Session:
    """One annotator at work: `next`, `submit`, `undo` and `progress`."""

    def __init__(self, collection: Collection, annotator: str) -> None:
        self.collection = collection
        self.annotator = annotator
        self.id = new_id()
        self.current: Presentation | None = None
        self._plan: list[Showing] | None = None
        self._tickets: dict[str, Showing] = {}
        self._position = 0
        self._since = monotonic()
        self._history: list[Entry] = []
        self._votes = 0
        self._done: dict[Showing, Entry] = {}
        self._undone: set[str] = set()
        self._reopened: list[Entry] = []

    @property
    def marks(self) -> Marks:
        """Return the marks that tickets and orders of the collection derive from."""
        assert self.collection.marks is not None  # set in __post_init__
        return self.collection.marks

    @property
    def plan(self) -> list[Showing]:
        """Return the showings in order; computed when first needed."""
        if self._plan is None:
            settings = self.collection.settings
            items = self.collection.pool.items
            self._plan = plan_for(self.annotator, items, settings, self.marks)
        return self._plan

    @property
    def tickets(self) -> Mapping[str, Showing]:
        """Return every ticket this annotator can have, under any plan."""
        if not self._tickets:
            self._tickets = {
                ticket_of(self.marks, name, self.annotator, showing): (name, showing)
                for name in self.collection.pool.items
                for showing in (0, 1)
            }
        return self._tickets

    def next(self) -> Presentation | None:
        """Return what to show now: the same until it is submitted, None if nothing is left."""
        upcoming = None if self.collection.enough else self._find()
        if upcoming is None or self.current is None or upcoming.ticket != self.current.ticket:
            self._since = monotonic()
        self.current = upcoming
        return upcoming

    def is_working_on(self, item_id: str) -> bool:
        """Return whether the annotator is working on the item and the lease has not expired."""
        at_work = self.current is not None and monotonic() - self._since < LEASE_SECONDS
        return at_work and self.current is not None and self.current.item.id == item_id

    def previous(self) -> Entry | None:
        """Return the undone act on the present showing, to start from."""
        return self._reopened[-1] if self._reopened else None

    def last(self) -> str | None:
        """Return the event that an undo would take back."""
        return self._history[-1].event_id if self._history else None

    def progress(self) -> AnnotatorProgress:
        """Return the progress of the annotator or, if there is an overlap to reach, of all."""
        mine = self._votes
        settings, pool = self.collection.settings, self.collection.pool
        if settings.overlap is None or settings.assign != "open":
            plan = self.plan
            return AnnotatorProgress(len(self._done), max(len(plan), len(self._done)), mine)
        voters = self.collection.voters.values()
        done = sum(min(len(votes), settings.overlap) for votes in voters)
        return AnnotatorProgress(done, settings.overlap * len(pool.items), mine)

    def submit(self, submission: Submission, *, ui: str = "tui", ts: str | None = None) -> Receipt:
        """Store a submission; on return it is on disk. `ts`: its time, if not now.

        Sent twice, it is stored once. Raises Conflict for a second act on the same showing.
        """
        presentation = self.presentation(submission.ticket)
        showing = (presentation.item.id, presentation.showing)
        event = self._event(submission, presentation, ui, ts)
        standing = self._done.get(showing)
        if event.id not in self.collection.log and standing is not None:
            raise Conflict("this item is already done", hint="Another tab or window was faster")
        stored = self.collection.log.append(event)
        if stored == "saved":
            self._note(event, presentation.item, showing)
        return Receipt(event.id, stored)

    def undo(
        self, key: str, target: str | None = None, *, ui: str = "tui", ts: str | None = None
    ) -> Receipt | None:
        """Undo one of the annotator's acts, the last by default; None if there is none."""
        _check_key(key)
        if target in self._undone:
            return Receipt(target, "duplicate")
        target = target or self.last()
        entry = next((e for e in reversed(self._history) if e.event_id == target), None)
        if entry is None:
            return None
        item = self.collection.pool.items[entry.showing[0]]
        event = self._base(key, item, ui) | {"action": "undo", "supersedes": entry.event_id}
        event["ts"] = ts or event["ts"]
        undo = Event.model_validate(event)
        stored = self.collection.log.append(undo)
        if stored == "saved":
            self._take_back(entry, item)
        return Receipt(entry.event_id, stored)

    def replay(self, event: Event, item: Item) -> None:
        """Apply one event of the log to the session."""
        if event.action == "undo":
            entry = next((e for e in self._history if e.event_id == event.supersedes), None)
            if entry is not None:
                self._take_back(entry, item)
            return
        self._note(event, item, (item.id, 0 if event.repeat_of is None else 1))

    def _find(self) -> Presentation | None:
        if self._reopened:
            return self._present(self._reopened[-1].showing)
        plan = self.plan
        while self._position < len(plan) and not self._wanted(plan[self._position]):
            self._position += 1
        if self._position == len(plan):
            # Another annotator's undo may have freed an earlier item.
            free = next((showing for showing in plan if self._wanted(showing)), None)
            return self._present(free) if free else None
        return self._present(plan[self._position])

    def _wanted(self, showing: Showing) -> bool:
        name, repeat = showing
        if showing in self._done:
            return False
        if repeat:
            first = self._done.get((name, 0))
            return first is not None and first.voted
        return self.collection.needs_vote(name, self.annotator)

    def _present(self, showing: Showing) -> Presentation:
        item = self.collection.pool.items[showing[0]]
        return present(item, self.marks, annotator=self.annotator, showing=showing[1])

    def presentation(self, ticket: str) -> Presentation:
        """Return the showing of a ticket of this annotator; DataError for any other ticket."""
        if ticket not in self.tickets:
            raise DataError("this item is not one of yours", hint="Reload the page")
        return self._present(self.tickets[ticket])

    def _base(self, key: str, item: Item, ui: str) -> dict[str, Any]:
        return {
            "id": _check_key(key),
            "ts": now(),
            "session": self.id,
            "annotator": self.annotator,
            "item": item.id,
            "item_sha256": item.sha256,
            "seed": self.collection.settings.seed,
            "gold": item.record.gold is not None,
            "ui": ui,
        }

    def _event(self, submission: Submission, shown: Presentation, ui: str, ts: str | None) -> Event:
        first = self._done.get((shown.item.id, 0)) if shown.showing else None
        return Event.model_validate(
            self._base(submission.key, shown.item, ui)
            | _content(submission, shown)
            | {
                "ts": ts or now(),
                "shown": shown.shown,
                "repeat_of": first.event_id if first else None,
                "active_ms": _milliseconds(submission.active_ms),
                "wall_ms": _milliseconds(submission.wall_ms),
            }
        )

    def _note(self, event: Event, item: Item, showing: Showing) -> None:
        shown = self._present(showing)
        order = order_text(shown.ranks_by_place(event.ranks)) if event.ranks else ""
        entry = Entry(
            event.id,
            showing,
            event.action in VOTES,
            order,
            event.all_bad,
            event.strength,
            event.comment,
        )
        self._history.append(entry)
        self._done[showing] = entry
        self._votes += entry.voted
        self._reopened = [old for old in self._reopened if old.showing != showing]
        if entry.voted and not showing[1]:
            self.collection.count(item, self.annotator, event.ranks or {})

    def _take_back(self, entry: Entry, item: Item) -> None:
        self._history.remove(entry)
        self._undone.add(entry.event_id)
        self._reopened.append(entry)
        self._votes -= entry.voted
        del self._done[entry.showing]
        if entry.voted and not entry.showing[1]:
            self.collection.count(item, self.annotator, None)


def check_annotator(name: str) -> str:
    """Return the name; RecipeError if it cannot be shown on one line."""
    if not name.strip() or len(name) > 100 or visible_line(name) != name:
        raise RecipeError(
            f"{visible_line(name)!r} is not a valid annotator name",
            hint="Use up to 100 visible characters on one line",
        )
    return name


def _content(submission: Submission, shown: Presentation) -> dict[str, Any]:
    """Return the part of the event that the annotator decided."""
    if len(submission.comment) > LONGEST_COMMENT or len(submission.reason or "") > LONGEST_COMMENT:
        raise DataError(f"the text is longer than {LONGEST_COMMENT:,} characters")
    _check_text(submission.comment + (submission.reason or ""))
    reason = (submission.reason or "").strip() or None
    if submission.action != "rank":
        if submission.action == "flag" and reason is None:
            raise DataError("a flag needs a reason", hint="Say what is wrong with the item")
        return {"action": submission.action, "comment": submission.comment, "reason": reason}
    if submission.strength is not None and submission.strength not in STRENGTHS:
        raise DataError(f"strength is {submission.strength}; it must be 1 to 4")
    return {
        "action": "pair" if len(shown.slots) == 2 else "rank",
        "ranks": shown.ranks_by_cid(_ranks(submission, len(shown.slots))),
        "all_bad": submission.all_bad,
        "strength": submission.strength,
        "comment": submission.comment,
        "extra": _texts(shown.item),
    }


def _ranks(submission: Submission, places: int) -> dict[int, int]:
    """Parse the order; all bad without an order means that all tie."""
    if submission.all_bad and not submission.order.strip():
        return dict.fromkeys(range(1, places + 1), 1)
    return parse_order(submission.order, places)


def _texts(item: Item) -> dict[str, Any]:
    """Return the texts that make the event a ranking without the candidates file."""
    record = item.record
    return {
        "prompt": [message.model_dump() for message in record.prompt],
        "candidates": [candidate.model_dump() for candidate in record.candidates],
    }


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            "the text contains bytes that are not UTF-8", hint="Type it again"
        ) from None


def _check_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise DataError("the key of an act must be a lower-case UUID")
    return key


def _milliseconds(value: int | None) -> int | None:
    return None if value is None else max(0, min(value, LONGEST_MS))


def _test_line(test: SequentialTest) -> str:
    better, share = (test.first, test.mean) if test.mean >= 0.5 else (test.second, 1 - test.mean)
    line = f"{better} wins {share:.0%} of {test.n} items"
    if test.decided:
        return f"{line}: decided at {test.alpha:.0%} error (anytime-valid)"
    more = test.more_votes()
    return f"{line}: open; about {more} more would decide it" if more else f"{line}: open"


_COUNTED: Mapping[str, int] = {}

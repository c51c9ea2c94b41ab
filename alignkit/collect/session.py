"""The session core that the terminal and the page share: what to show next, and what to store.

A `Collection` is one log and one pool of items; a `Session` is one annotator at work on it. All
state is rebuilt from the log, so a session that was killed goes on where it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal

from alignkit.collect.choice import Duel, duel_of, has_scores, outcome, worth_asking
from alignkit.collect.items import Item, Pool, Presentation, present, ticket_of
from alignkit.collect.log import VOTES, Conflict, EventLog, Stored, new_id, now
from alignkit.collect.order import order_text, parse_order
from alignkit.collect.plan import Settings, Showing, plan_for
from alignkit.collect.secret import Marks, readable_by_others, secret_beside, secret_file
from alignkit.data.records import Event
from alignkit.errors import DataError, RecipeError
from alignkit.store.visible import visible_line

STRENGTHS = (1, 2, 3, 4)
LONGEST_COMMENT = 10_000
# How long an item that is on somebody's screen counts towards its overlap.
LEASE_SECONDS = 900.0
# Nobody reads one item for a day; a larger number is a clock that went wrong.
LONGEST_MS = 24 * 3600 * 1000
_KEY = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

Action = Literal["rank", "skip", "flag"]


@dataclass(frozen=True)
class Answer:
    """What an annotator did with one showing, as a surface says it.

    `key` names the act: the same act sent twice has the same key. `order` is in places, `2>1=3`.
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
    """The answer is on the disk; `event_id` is what an undo names."""

    event_id: str
    stored: Stored


@dataclass(frozen=True)
class Progress:
    """How far along: `done` of `total` showings, and `mine`, the annotator's own votes."""

    done: int
    total: int
    mine: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One act that stands, with what it takes to show it again after an undo."""

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
    duel: Duel | None = None
    marks: Marks | None = None  # by default those of the secret beside the log

    def __post_init__(self) -> None:
        if self.stop_when_decided:
            if self.settings.order != "random":
                raise RecipeError(
                    "stopping early needs items in an order that knows no scores",
                    hint="Add --order random",
                )
            self.duel = duel_of(self.pool.items.values())
        if self.marks is None:
            self.marks = Marks(self.settings.seed, secret_beside(self.log.path))
            if readable_by_others(self.log.path):
                file = secret_file(self.log.path)
                self.reports.append(f"{file}: others on this machine can read it: chmod 600 it")
        self._replay()
        for name in self.settings.annotators:
            self.session(name)

    def session(self, annotator: str) -> Session:
        """The session of this annotator, the same one every time."""
        if annotator not in self.sessions:
            self.sessions[annotator] = Session(self, check_annotator(annotator))
        return self.sessions[annotator]

    def free_for(self, item_id: str, annotator: str) -> bool:
        """Whether the item still wants this annotator's vote."""
        overlap = self.settings.overlap
        if overlap is None or self.settings.assign != "open":
            return True
        others = set(self.voters.get(item_id, {})) | {
            name for name, session in self.sessions.items() if session.holds(item_id)
        }
        return len(others - {annotator}) < overlap

    @property
    def enough(self) -> bool:
        """Whether the votes already decide between the two models."""
        return self.duel is not None and self.duel.decided

    def count(self, item: Item, annotator: str, ranks: Mapping[str, int] | None) -> None:
        """Note (or with None: take back) an annotator's vote on an item."""
        votes = self.voters.setdefault(item.id, {})
        if ranks is None:
            votes.pop(annotator, None)
            self._recount()
            return
        votes[annotator] = ranks if self.duel else _COUNTED
        # One outcome an item: two annotators on one item are not two independent draws.
        if len(votes) == 1:
            self._judge(item, ranks)

    def _judge(self, item: Item, ranks: Mapping[str, int]) -> None:
        value = outcome(item, ranks, self.duel) if self.duel else None
        if self.duel and value is not None:
            self.duel.add(value)

    def _recount(self) -> None:
        if self.duel is None:
            return
        self.duel.restart()
        for name, votes in self.voters.items():
            if votes:
                self._judge(self.pool.items[name], next(iter(votes.values())))

    def summary(self) -> list[str]:
        """What the collection holds and what is still worth asking, a line each."""
        voted = [name for name, votes in self.voters.items() if votes]
        lines = [f"{len(voted)} of {len(self.pool.items)} items have a vote"]
        open_items = [item for name, item in self.pool.items.items() if not self.voters.get(name)]
        if open_items and all(has_scores(item) for item in open_items):
            worth = worth_asking(open_items)
            lines.append(f"{worth} more are worth asking: the scores leave their order open")
        if self.duel and self.duel.n:
            lines.append(_duel_line(self.duel))
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
                f"{self.log.path}: {len(changed)} items were ranked with other texts than the"
                f" candidates hold now, or are gone, {sorted(changed)[0]!r} among them;"
                " their votes stay in the file and count for nothing here"
            )


class Session:
    """One annotator at work: `next`, `submit`, `undo`, and how far along."""

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
        """What tickets and orders of the collection are made of."""
        assert self.collection.marks is not None  # set as it came to be
        return self.collection.marks

    @property
    def plan(self) -> list[Showing]:
        """The showings in order; worked out when first needed."""
        if self._plan is None:
            settings = self.collection.settings
            items = self.collection.pool.items
            self._plan = plan_for(self.annotator, items, settings, self.marks)
        return self._plan

    @property
    def tickets(self) -> Mapping[str, Showing]:
        """Every ticket this annotator can hold, whatever plan it was given out under."""
        if not self._tickets:
            self._tickets = {
                ticket_of(self.marks, name, self.annotator, showing): (name, showing)
                for name in self.collection.pool.items
                for showing in (0, 1)
            }
        return self._tickets

    def next(self) -> Presentation | None:
        """What to show now: the same until it is answered, None when there is nothing left."""
        found = None if self.collection.enough else self._find()
        if found is None or self.current is None or found.ticket != self.current.ticket:
            self._since = monotonic()
        self.current = found
        return found

    def holds(self, item_id: str) -> bool:
        """Whether the annotator is at work on the item, and has not walked away from it."""
        at_work = self.current is not None and monotonic() - self._since < LEASE_SECONDS
        return at_work and self.current is not None and self.current.item.id == item_id

    def previous(self) -> Entry | None:
        """The undone answer to what is shown now, to start from."""
        return self._reopened[-1] if self._reopened else None

    def last(self) -> str | None:
        """The event that an undo would take back."""
        return self._history[-1].event_id if self._history else None

    def progress(self) -> Progress:
        """How far along the annotator is, or with an overlap to reach, all of them."""
        mine = self._votes
        settings, pool = self.collection.settings, self.collection.pool
        if settings.overlap is None or settings.assign != "open":
            plan = self.plan
            return Progress(len(self._done), max(len(plan), len(self._done)), mine)
        voters = self.collection.voters.values()
        done = sum(min(len(votes), settings.overlap) for votes in voters)
        return Progress(done, settings.overlap * len(pool.items), mine)

    def submit(self, answer: Answer, *, ui: str = "tui", ts: str | None = None) -> Receipt:
        """Store the answer; on return it is on the disk. `ts`: when it was given, if not now.

        Sent twice it is stored once; another answer to a showing that has one is a Conflict.
        """
        presentation = self.presentation(answer.ticket)
        showing = (presentation.item.id, presentation.showing)
        event = self._event(answer, presentation, ui, ts)
        standing = self._done.get(showing)
        if event.id not in self.collection.log and standing is not None:
            raise Conflict("this item is already answered", hint="Another tab or window was faster")
        stored = self.collection.log.append(event)
        if stored == "saved":
            self._note(event, presentation.item, showing)
        return Receipt(event.id, stored)

    def undo(
        self, key: str, target: str | None = None, *, ui: str = "tui", ts: str | None = None
    ) -> Receipt | None:
        """Take back one of the annotator's acts, the last by default; None: nothing to undo."""
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
        """Bring the session to where it was after this event of the log."""
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
            # Another annotator's undo may have set an earlier item free again.
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
        return self.collection.free_for(name, self.annotator)

    def _present(self, showing: Showing) -> Presentation:
        item = self.collection.pool.items[showing[0]]
        return present(item, self.marks, annotator=self.annotator, showing=showing[1])

    def presentation(self, ticket: str) -> Presentation:
        """The showing behind a ticket of this annotator."""
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

    def _event(self, answer: Answer, shown: Presentation, ui: str, ts: str | None) -> Event:
        first = self._done.get((shown.item.id, 0)) if shown.showing else None
        return Event.model_validate(
            self._base(answer.key, shown.item, ui)
            | _content(answer, shown)
            | {
                "ts": ts or now(),
                "shown": shown.shown,
                "repeat_of": first.event_id if first else None,
                "active_ms": _milliseconds(answer.active_ms),
                "wall_ms": _milliseconds(answer.wall_ms),
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
    """The name, or an error when it could not stand in a file and on a screen."""
    if not name.strip() or len(name) > 100 or visible_line(name) != name:
        raise RecipeError(
            f"{visible_line(name)!r} cannot name an annotator",
            hint="Use up to 100 visible characters on one line",
        )
    return name


def _content(answer: Answer, shown: Presentation) -> dict[str, Any]:
    """The part of the event that the annotator decided."""
    if len(answer.comment) > LONGEST_COMMENT or len(answer.reason or "") > LONGEST_COMMENT:
        raise DataError(f"the text is longer than {LONGEST_COMMENT:,} characters")
    _check_text(answer.comment + (answer.reason or ""))
    reason = (answer.reason or "").strip() or None
    if answer.action != "rank":
        if answer.action == "flag" and reason is None:
            raise DataError("a flag needs a reason", hint="Say what is wrong with the item")
        return {"action": answer.action, "comment": answer.comment, "reason": reason}
    if answer.strength is not None and answer.strength not in STRENGTHS:
        raise DataError(f"strength is {answer.strength}; 1 to 4 are known")
    return {
        "action": "pair" if len(shown.slots) == 2 else "rank",
        "ranks": shown.ranks_by_cid(_ranks(answer, len(shown.slots))),
        "all_bad": answer.all_bad,
        "strength": answer.strength,
        "comment": answer.comment,
        "extra": _texts(shown.item),
    }


def _ranks(answer: Answer, places: int) -> dict[int, int]:
    """All bad and no order given: all level, at the bottom together."""
    if answer.all_bad and not answer.order.strip():
        return dict.fromkeys(range(1, places + 1), 1)
    return parse_order(answer.order, places)


def _texts(item: Item) -> dict[str, Any]:
    """What makes the event a ranking on its own, without the candidates file."""
    record = item.record
    return {
        "prompt": [message.model_dump() for message in record.prompt],
        "candidates": [candidate.model_dump() for candidate in record.candidates],
    }


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("the text holds bytes that are not UTF-8", hint="Type it again") from None


def _check_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise DataError("the key of an answer must be a lower-case UUID")
    return key


def _milliseconds(value: int | None) -> int | None:
    return None if value is None else max(0, min(value, LONGEST_MS))


def _duel_line(duel: Duel) -> str:
    better, share = (duel.first, duel.mean) if duel.mean >= 0.5 else (duel.second, 1 - duel.mean)
    line = f"{better} wins {share:.0%} of {duel.n} items"
    if duel.decided:
        return f"{line}: decided at {duel.alpha:.0%} error, whenever one looks"
    more = duel.more_votes()
    return f"{line}: open; about {more} more would decide it" if more else f"{line}: open"


_COUNTED: Mapping[str, int] = {}

"""What a person says about replies while talking to a model, kept as the events of ranking.

A choice between two replies and a correction are pairs. Thumbs on one reply alone compare
nothing; thumbs up and down on several replies to the same words are a ranking of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from alignkit.collect.items import item_sha256
from alignkit.collect.log import EventLog, new_id, now
from alignkit.collect.session import check_annotator
from alignkit.data.records import Candidate, Candidates, Event, Message

HUMAN = "human"


@dataclass(frozen=True)
class Reply:
    """A text, the model that wrote it, and how it was drawn."""

    text: str
    model: str
    seed: int | None = None


@dataclass
class Feedback:
    """One person's events about one conversation, stored as they are given."""

    log: EventLog
    annotator: str
    session: str = field(default_factory=new_id)
    _thumbs: dict[str, tuple[str, list[tuple[Reply, bool]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_annotator(self.annotator)

    def choose(self, prompt: Sequence[Message], shown: Sequence[Reply], better: int | None) -> str:
        """`shown[better]` is the better of two, or with None neither; the event's id."""
        ranks = [1 if better in (None, place) else 2 for place in range(len(shown))]
        return self._store(prompt, shown, ranks)

    def correct(self, prompt: Sequence[Message], reply: Reply, text: str) -> str:
        """What the person wrote instead is better than the reply."""
        return self._store(prompt, [reply, Reply(text, HUMAN)], [2, 1])

    def thumb(self, prompt: Sequence[Message], reply: Reply, good: bool) -> str:
        """A verdict on one reply; with those on other replies to the same words, a ranking."""
        item = _item(prompt)
        before, given = self._thumbs.get(item, (None, []))
        given = [(old, verdict) for old, verdict in given if old.text != reply.text]
        given.append((reply, good))
        replies = [old for old, _ in given]
        verdicts = [verdict for _, verdict in given]
        ranks = [1 if verdict or not any(verdicts) else 2 for verdict in verdicts]
        event = self._store(prompt, replies, ranks, verdicts=verdicts, supersedes=before)
        self._thumbs[item] = (event, given)
        return event

    def _store(
        self,
        prompt: Sequence[Message],
        shown: Sequence[Reply],
        ranks: Sequence[int],
        *,
        verdicts: Sequence[bool] = (),
        supersedes: str | None = None,
    ) -> str:
        candidates = [
            Candidate(
                cid=f"c{place}",
                messages=[Message(role="assistant", content=reply.text)],
                model=reply.model,
                gen=None if reply.seed is None else {"seed": reply.seed},
            )
            for place, reply in enumerate(shown)
        ]
        record = Candidates(prompt=list(prompt), candidates=candidates)
        event = Event(
            id=new_id(),
            ts=now(),
            session=self.session,
            annotator=self.annotator,
            # Two choices about the same words are two votes: the texts are part of the name.
            item=_item(prompt) if verdicts else item_sha256(record)[:16],
            item_sha256=item_sha256(record),
            shown=[candidate.cid for candidate in candidates],
            action="pair" if len(shown) == 2 else "rank",
            ranks={c.cid: rank for c, rank in zip(candidates, ranks, strict=True)},
            all_bad=bool(verdicts) and not any(verdicts),
            ui="chat",
            supersedes=supersedes,
            extra={
                "prompt": [message.model_dump() for message in prompt],
                "candidates": [candidate.model_dump() for candidate in candidates],
            },
        )
        self.log.append(event)
        return event.id


def _item(prompt: Sequence[Message]) -> str:
    return item_sha256(Candidates(prompt=list(prompt), candidates=[_NOTHING]))[:16]


_NOTHING = Candidate(cid="c0", messages=[])

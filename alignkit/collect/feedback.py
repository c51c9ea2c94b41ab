"""Store a person's feedback during a chat as ranking events.

A choice between two completions and a correction are pairs. A thumb on a single completion compares
nothing; thumbs up and down on several completions of the same prompt are a ranking of them.
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
class ChatCompletion:
    """A completion, its model, and the seed it was sampled with."""

    text: str
    model: str
    seed: int | None = None


@dataclass
class Feedback:
    """One person's feedback on one conversation, stored event by event."""

    log: EventLog
    annotator: str
    session: str = field(default_factory=new_id)
    _thumbs: dict[str, tuple[str, list[tuple[ChatCompletion, bool]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_annotator(self.annotator)

    def choose(
        self, prompt: Sequence[Message], shown: Sequence[ChatCompletion], better: int | None
    ) -> str:
        """Store that `shown[better]` is better, or a tie for None; return the event id."""
        ranks = [1 if better in (None, place) else 2 for place in range(len(shown))]
        return self._store(prompt, shown, ranks)

    def correct(self, prompt: Sequence[Message], completion: ChatCompletion, text: str) -> str:
        """Store that the person's own text is better than the completion; return the event id."""
        return self._store(prompt, [completion, ChatCompletion(text, HUMAN)], [2, 1])

    def thumb(self, prompt: Sequence[Message], completion: ChatCompletion, good: bool) -> str:
        """Store a thumb; with thumbs on other completions of the prompt it makes a ranking."""
        item = _item(prompt)
        before, given = self._thumbs.get(item, (None, []))
        given = [(old, verdict) for old, verdict in given if old.text != completion.text]
        given.append((completion, good))
        rated = [old for old, _ in given]
        verdicts = [verdict for _, verdict in given]
        ranks = [1 if verdict or not any(verdicts) else 2 for verdict in verdicts]
        event = self._store(prompt, rated, ranks, verdicts=verdicts, supersedes=before)
        self._thumbs[item] = (event, given)
        return event

    def _store(
        self,
        prompt: Sequence[Message],
        shown: Sequence[ChatCompletion],
        ranks: Sequence[int],
        *,
        verdicts: Sequence[bool] = (),
        supersedes: str | None = None,
    ) -> str:
        candidates = [
            Candidate(
                cid=f"c{place}",
                messages=[Message(role="assistant", content=completion.text)],
                model=completion.model,
                gen=None if completion.seed is None else {"seed": completion.seed},
            )
            for place, completion in enumerate(shown)
        ]
        record = Candidates(prompt=list(prompt), candidates=candidates)
        event = Event(
            id=new_id(),
            ts=now(),
            session=self.session,
            annotator=self.annotator,
            # Two choices on the same prompt are two votes: the name includes the completions.
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

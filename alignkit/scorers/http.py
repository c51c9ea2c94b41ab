"""Score by an HTTP service: a POST of JSON, answered with one score per completion.

`{"prompts": [[{role, content}…]…], "completions": [text…]}` is answered with
`{"scores": [number…]}`. A URL that ends in `/score` speaks the scoring call of OpenAI-compatible
servers instead (`text_1`, `text_2`; its `?model=` names the model). A key in the environment
variable ALIGNKIT_REWARD_API_KEY is sent as a bearer token.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlunsplit

from alignkit.errors import TrainingFailed
from alignkit.recipe.scorer_forms import Spec
from alignkit.scorers import Completed, Resources
from alignkit.scorers.gold import last_turn
from alignkit.service import check_address, post_json


class HttpScorer:
    """Raises TrainingFailed where the service gives no scores; a retry has then been no help."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        batch_size: int,
        wait: float = 0.5,
        what: str = "reward_url",
    ) -> None:
        """`timeout` and `wait`: seconds for one try, and before the second one."""
        self.url, self.what = url, what
        self.timeout, self.batch_size, self.wait = timeout, batch_size, wait
        parts = check_address(url, what=what, example="http://localhost:8000/score")
        # A password in the address is for the service; the name goes into metrics and judgements.
        self.name = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        self.model = parse_qs(parts.query).get("model", [None])[0]
        self.dialect = DIALECTS["score" if parts.path.endswith("/score") else "plain"]

    def scores(self, items: Sequence[Completed]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(items), self.batch_size):
            part = items[start : start + self.batch_size]
            answer = post_json(
                self.url,
                self.dialect.ask(part, self.model),
                what=self.what,
                timeout=self.timeout,
                key=os.environ.get("ALIGNKIT_REWARD_API_KEY"),
                where=part[0].where,
                wait=self.wait,
            )
            found += self._checked(answer, part)
        return found

    def _checked(self, answer: Any, part: Sequence[Completed]) -> list[float]:
        try:
            given = self.dialect.read(answer)
            if not all(type(score) in (int, float) for score in given):
                raise TypeError("a score that is no number of JSON")
        except (KeyError, TypeError, ValueError):
            raise TrainingFailed(
                f"{self.what} {self.name} answered without scores: {str(answer)[:120]}",
                where=part[0].where,
                hint=f"expected {self.dialect.expected}",
            ) from None
        if len(given) != len(part):
            raise TrainingFailed(
                f"{self.what} {self.name} gave {len(given)} scores for {len(part)} completions",
                where=part[0].where,
            )
        return [float(score) for score in given]  # JSON holds no integer that no float holds


def _ask_plain(items: Sequence[Completed], _model: str | None) -> dict[str, Any]:
    return {
        "prompts": [[dict(turn) for turn in item.messages] for item in items],
        "completions": [item.text for item in items],
    }


def _ask_score(items: Sequence[Completed], model: str | None) -> dict[str, Any]:
    return {
        "model": model,
        "text_1": [last_turn(item.messages) for item in items],
        "text_2": [item.text for item in items],
    }


def _read_plain(answer: Any) -> list[Any]:
    scores = answer["scores"]
    if not isinstance(scores, list):  # list() would take a text apart, or an object's keys
        raise TypeError("scores are no list")
    return scores


def _read_score(answer: Any) -> list[Any]:
    rows = sorted(answer["data"], key=lambda row: row["index"])
    if [row["index"] for row in rows] != list(range(len(rows))):
        raise ValueError("which score belongs to which completion is not said")
    return [row["score"] for row in rows]


@dataclass(frozen=True)
class Dialect:
    """How to speak to a service: what to send, and where its scores are."""

    ask: Callable[[Sequence[Completed], str | None], dict[str, Any]]
    read: Callable[[Any], list[Any]]
    expected: str


DIALECTS = {
    "plain": Dialect(_ask_plain, _read_plain, '{"scores": [one number per completion]}'),
    "score": Dialect(
        _ask_score, _read_score, '{"data": [{"index": 0, "score": a number}, …]}, each index once'
    ),
}


def open_scorer(spec: Spec, resources: Resources) -> HttpScorer:
    return HttpScorer(
        f"{spec.kind}:{spec.argument}",
        timeout=resources.timeout,
        batch_size=resources.batch_size,
        what=resources.what,
    )

"""Judges that score each completion by itself: no order, so each pair is judged once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from alignkit.data.records import Message, Ranking
from alignkit.data.template_input import NOTHING, TemplateContext
from alignkit.errors import DataError, RecipeError
from alignkit.evaluation.reward_trial import ScoredRanking
from alignkit.files.json_text import decode
from alignkit.files.problems import RowError
from alignkit.judges import Comparison, Verdict
from alignkit.store.artifacts import write_durably


class Side(NamedTuple):
    """A reply to score; `completion`: its turns where they hold more than the text."""

    prompt: Sequence[Message]
    text: str
    context: TemplateContext = NOTHING
    completion: Sequence[Message] | None = None


Scorer = Callable[[Sequence[Side | tuple[Sequence[Message], str]]], list[float]]


@dataclass(frozen=True)
class ScoreJudge:
    """The higher score wins, equal scores tie."""

    name: str
    score: Scorer
    has_order: bool = False
    temperature: float | None = None  # a calibrated judge also says how sure it is

    def compare_many(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        sides = [Side(c.prompt, text, c.context) for c in comparisons for text in (c.left, c.right)]
        scores = self.score(sides)
        return [self._verdict(*pair) for pair in zip(scores[::2], scores[1::2], strict=True)]

    def _verdict(self, left: float, right: float) -> Verdict:
        notes: dict[str, float] = {"score_left": left, "score_right": right}
        if self.temperature is not None:
            sure = 0.5 * (1.0 + math.tanh((left - right) / (2 * self.temperature)))
            notes |= {"probability_left": sure, "probability_right": 1.0 - sure}
        return Verdict(_won(left, right), notes=notes)


def _won(left: float, right: float) -> float:
    return 0.5 if left == right else float(left > right)


def gold_judge(rest: str = "", **_options: Any) -> ScoreJudge:
    """The embedded task's own truth."""
    from alignkit.judges.gold import gold_score

    if rest:
        raise RecipeError(
            f"the gold judge takes nothing after its name, not {rest!r}",
            hint=f"A function in a module of yours that is called gold: function:gold:{rest}",
        )
    return ScoreJudge("gold", lambda sides: [gold_score(side[0], side[1]) for side in sides])


def reward_judge(
    rest: str, *, backbones: Any = None, batch_size: int = 16, **_options: Any
) -> ScoreJudge:
    """A reward run's model, on one of the backbones already loaded where its base is the same."""
    from alignkit.judges.contest import Backbones
    from alignkit.recipe.settings import BackboneConfig

    directory = Path(rest)
    if not (directory / "adapter" / "head.safetensors").is_file():
        raise RecipeError(f"{rest} is no finished reward run", hint="Name its directory")
    score = _RewardScores(directory, backbones or Backbones(BackboneConfig()), batch_size)
    score.model()  # what does not fit is said before anybody answers
    return ScoreJudge(directory.name, score, temperature=stored_temperature(directory))


@dataclass
class _RewardScores:
    """Scores by a reward run; its adapter is put back when a policy or another base took its place.

    The adapter is named after the directory: several reward runs judge on one backbone.
    """

    directory: Path
    backbones: Any
    batch_size: int
    loaded: Any = None

    def model(self) -> Any:
        from alignkit.model.files import find_model
        from alignkit.scorers.reward_model import RewardModel

        backbone = self.backbones.of(find_model(str(self.directory)))
        name = f"reward-{hashlib.sha256(str(self.directory.resolve()).encode()).hexdigest()[:12]}"
        stays = self.loaded is not None and self.loaded.backbone is backbone
        if not stays or name not in backbone.adapters:
            self.loaded = RewardModel.load(backbone, self.directory, name)
        return self.loaded

    def __call__(self, sides: Sequence[Side | tuple[Sequence[Message], str]]) -> list[float]:
        from alignkit.data.chat import Encoder
        from alignkit.forward.logps import Group

        model = self.model()
        encoder = Encoder(model.backbone.tokenizer)
        groups = []
        for side in sides:
            prompt, text, context, turns = Side(*side)
            reply = turns or [Message(role="assistant", content=text)]
            ids = encoder.completion_ids(prompt, reply, context=context)
            groups.append(Group(encoder.prompt_ids(prompt, context=context), [ids]))
        found: list[float] = model.scores(groups, self.batch_size)
        return found


def scored_rankings(judge: ScoreJudge, rankings: Sequence[Ranking]) -> list[ScoredRanking]:
    """Rankings with the judge's score of each ranked completion; a candidate's own is gold."""
    sides: list[Side | tuple[Sequence[Message], str]] = []
    owners = []
    for ranking in rankings:
        known = [c for c in ranking.candidates if c.cid in ranking.ranks]
        owners.append(known)
        context = TemplateContext.of(ranking)
        sides += [
            Side(ranking.prompt, c.messages[-1].content, context, c.completion) for c in known
        ]
    scores = iter(judge.score(sides))
    found = []
    for ranking, known in zip(rankings, owners, strict=True):
        gold = [c.score for c in known if c.score is not None]
        category = ranking.extra.get("category") or ranking.extra.get("subset")
        found.append(
            ScoredRanking(
                id=ranking.item or ranking.id,
                scores=[next(scores) for _ in known],
                ranks=[ranking.ranks[c.cid] for c in known],
                lengths=[len(c.messages[-1].content) for c in known],
                category=None if category is None else str(category),
                gold=gold if len(gold) == len(known) else None,
            )
        )
    return found


CALIBRATION = "calibration.json"


def store_temperature(directory: Path, found: dict[str, Any]) -> Path:
    """Keep a reward run's temperature beside its adapter, where `reward_judge` finds it."""
    target = directory / CALIBRATION
    write_durably(target, orjson.dumps(found, option=orjson.OPT_INDENT_2))
    return target


def stored_temperature(directory: Path) -> float | None:
    """The temperature that `eval reward --calibrate` left; None when there is none."""
    file = directory / CALIBRATION
    if not file.is_file():
        return None
    try:
        kept = decode(file.read_bytes())
        value = float(kept["temperature"])
    except (RowError, KeyError, TypeError, ValueError, OverflowError):
        raise DataError("holds no temperature", where=str(file), hint="Calibrate again") from None
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"temperature {value} is not above 0", where=str(file))
    return value

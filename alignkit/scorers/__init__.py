"""Scorers give a completion of a prompt one finite score; the higher, the better.

One protocol, used as a reward by PPO and RLOO, as a judge by the score, to rank candidates, and to
put reward models on trial. `alignkit.recipe.scorer_forms.FORMS` lists all scorers; each is one
module here with `open_scorer(spec, resources)`. docs/CONTRIBUTING.md shows how to add one.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from alignkit.data.records import Message
from alignkit.data.template_input import NOTHING, TemplateContext
from alignkit.errors import RecipeError, TrainingFailed, did_you_mean
from alignkit.recipe.scorer_forms import FORMS, Spec, known, mistake, parse

if TYPE_CHECKING:
    from alignkit.data.chat import Encoder
    from alignkit.forward.packing import Group
    from alignkit.scorers.backbones import Backbones

# Training keeps scores in float32: what is finite beyond its range would be infinite there.
LARGEST = (2 - 2**-23) * 2.0**127


class ScoringFailed(TrainingFailed):
    """A scorer gave a completion no finite score; other completions may well have one."""


class Completed(Protocol):
    """A prompt with one completion, as scorers see it."""

    @property
    def where(self) -> str | None:
        """Names the prompt in errors: `file:line`."""
        ...

    @property
    def messages(self) -> Sequence[Mapping[str, Any]]:
        """The prompt's turns, each with role, content and what else it has."""
        ...

    @property
    def text(self) -> str:
        """The completion."""
        ...

    @property
    def columns(self) -> Mapping[str, Any]:
        """What else the prompt's row holds."""
        ...

    def group(self, encoder: Encoder) -> Group:
        """The tokens of both, as a reward model reads them."""
        ...


class Scorer(Protocol):
    """What all scorers share."""

    @property
    def name(self) -> str:
        """Names the scorer in messages, metrics and judgements."""
        ...

    def scores(self, items: Sequence[Completed]) -> list[float]:
        """Give one score per completion, in order. Raises ScoringFailed where one has none."""
        ...


@dataclass(frozen=True)
class WrittenCompletion:
    """A completion known by its text, not by the tokens that were sampled.

    `turns`: its messages, where they hold more than the text (tool calls). `ids`: tokens of prompt
    and completion, where the scorer's own backbone sampled them; they are then read as they are.
    """

    prompt: Sequence[Message]
    text: str
    context: TemplateContext = NOTHING
    turns: Sequence[Message] | None = None
    ids: tuple[Sequence[int], Sequence[int]] | None = None
    where: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def messages(self) -> list[dict[str, Any]]:
        return [turn.model_dump(exclude={"train", "extra"}) for turn in self.prompt]

    def group(self, encoder: Encoder) -> Group:
        """Tokens as sampled; else the text by the chat template, its end token included."""
        from alignkit.forward.packing import Group

        if self.ids is not None:
            return Group(self.ids[0], [self.ids[1]])
        reply = self.turns or [Message(role="assistant", content=self.text)]
        ids = encoder.completion_ids(self.prompt, reply, context=self.context)
        return Group(encoder.prompt_ids(self.prompt, context=self.context), [ids])


@dataclass(frozen=True)
class Resources:
    """What scorers and judges are opened with.

    `backbones` loads base models. `run`, `run_name` and `file` give the directory of a run, the
    name of its judge, and the path of a file, for values as they are written. `what` names the
    setting in messages. `settings` are those of an llm judge. `closing` closes what was opened, and
    has it `say` what it cost.
    """

    backbones: Backbones | None = None
    run: Callable[[str], Path] = Path
    run_name: Callable[[str], str] = lambda text: Path(text).name
    file: Callable[[str], Path] = Path
    what: str = "judge"
    adapter: str | None = None
    batch_size: int = 16
    timeout: float = 60.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = lambda _line: None
    closing: ExitStack = field(default_factory=ExitStack)


def open_scorer(text: str, resources: Resources) -> Scorer:
    """Open the scorer that a value names. Raises RecipeError where there is none."""
    if wrong := mistake(text, "scorer"):
        raise RecipeError(wrong[0], hint=wrong[1])
    return opened_scorer(parse(text), resources)


def opened_scorer(spec: Spec, resources: Resources) -> Scorer:
    """Open the scorer of a value already taken apart."""
    assert spec.form.scorer is not None
    module = importlib.import_module(spec.form.scorer)
    scorer: Scorer = module.open_scorer(spec, resources)
    return scorer


def unknown(text: str, by: str) -> RecipeError:
    """The error for a value that names no scorer, judge or run."""
    kind = text.partition(":")[0]
    if kind in FORMS:
        return RecipeError(f"{text!r} needs more than its name", hint=f"Write {FORMS[kind].usage}")
    kinds = known("judge" if by == "judge" else "scorer")
    usages = ", ".join(FORMS[kind].usage for kind in kinds)
    return RecipeError(f"unknown {by} {text!r}{did_you_mean(kind, kinds)}", hint=f"Known: {usages}")


def finite_scores(
    scorer: Scorer, items: Sequence[Completed], *, what: str = "reward"
) -> list[float]:
    """Give one score per completion. Raises ScoringFailed naming the prompt of one not finite."""
    scores = scorer.scores(items)
    for item, score in zip(items, scores, strict=True):
        if not (math.isfinite(score) and abs(score) <= LARGEST):
            raise ScoringFailed(
                f"{what} {scorer.name} is {score}, which is no finite number in float32",
                where=item.where,
                hint=f"the completion was {item.text[:80]!r}",
            )
    return scores

"""From completions of two models to judgements: both orders where a judge has one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alignkit.data.records import Judgement, Message, Prompt
from alignkit.data.template_input import NOTHING, TemplateContext
from alignkit.judges import Comparison, Judge, Verdict

# Judged and yielded together, so that a long run shows progress and keeps what it has.
BATCH = 64


@dataclass(frozen=True)
class Duel:
    """One prompt with a completion of each of the two models."""

    prompt_id: str
    prompt: list[Message]
    output_a: str
    output_b: str
    extra: dict[str, Any] | None = None
    context: TemplateContext = NOTHING


def prompt_names(prompts: Sequence[Prompt]) -> list[str]:
    """A name for each prompt: its id, or its number; one id on different texts is told apart.

    Files put together may use the same ids; judgements of different prompts must not be taken for
    judgements of one.
    """
    owner: dict[str, str] = {}
    names = []
    for i, prompt in enumerate(prompts):
        text = "\x1e".join(f"{m.role}\x1f{m.content}" for m in prompt.prompt)
        name, copy = prompt.id or str(i), 1
        while owner.setdefault(name, text) != text:
            copy += 1
            name = f"{prompt.id or i} ({copy})"
        names.append(name)
    return names


def judged(judge: Judge, duels: Sequence[Duel], *, a: str, b: str) -> Iterator[Judgement]:
    """Judgements of all duels in order; equal completions are a tie that nobody is asked about."""
    orders: tuple[Literal["a", "b"] | None, ...] = ("a", "b") if judge.has_order else (None,)
    for start in range(0, len(duels), BATCH):
        batch = duels[start : start + BATCH]
        asked = [
            (duel, first) for duel in batch for first in orders if duel.output_a != duel.output_b
        ]
        verdicts = iter(judge.compare_many([_comparison(duel, first) for duel, first in asked]))
        for duel in batch:
            for first in orders:
                same = duel.output_a == duel.output_b
                verdict = Verdict(0.5, notes={"identical": True}) if same else next(verdicts)
                yield _judgement(judge.name, duel, first, verdict, a, b)


def _comparison(duel: Duel, first: str | None) -> Comparison:
    if first == "b":
        return Comparison(duel.prompt, duel.output_b, duel.output_a, duel.context)
    return Comparison(duel.prompt, duel.output_a, duel.output_b, duel.context)


def _judgement(
    judge: str, duel: Duel, first: Literal["a", "b"] | None, verdict: Verdict, a: str, b: str
) -> Judgement:
    score = verdict.score
    if score is not None and first == "b":
        score = 1.0 - score
    sides = ("b", "a") if first == "b" else ("a", "b")
    names = dict(zip(("_left", "_right"), sides, strict=True))
    notes = {}
    for key, value in (verdict.notes or {}).items():
        stem, _, end = key.rpartition("_")
        notes[f"{stem}_{names['_' + end]}" if "_" + end in names else key] = value
    return Judgement(
        id=f"{duel.prompt_id}/{judge}/{first or 'any'}",
        prompt_id=duel.prompt_id,
        a=a,
        b=b,
        first=first,
        verdict=None if score is None else _word(score),
        score=score,
        judge=judge,
        prompt=duel.prompt,
        output_a=duel.output_a,
        output_b=duel.output_b,
        error=verdict.error,
        extra=(duel.extra or {}) | notes,
    )


def _word(score: float) -> Literal["a", "b", "tie"]:
    return "tie" if score == 0.5 else "a" if score > 0.5 else "b"

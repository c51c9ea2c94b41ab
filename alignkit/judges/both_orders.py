"""Turn completions of two policies into judgements, in both orders where a judge has one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alignkit.data.records import Judgement, Message, Prompt
from alignkit.data.template_input import NOTHING, TemplateContext
from alignkit.judges import Comparison, Judge, Verdict

# Judged and yielded together, so that a long run shows progress and keeps what it has.
BATCH = 64


@dataclass(frozen=True)
class CompletionPair:
    """One prompt with a completion of each of two policies.

    `sample` numbers the pairs of a prompt. `extra` goes into the judgements, `columns` is what the
    prompt's row holds, `where` its place.
    """

    prompt_id: str
    prompt: list[Message]
    output_a: str
    output_b: str
    extra: dict[str, Any] | None = None
    context: TemplateContext = NOTHING
    sample: int = 0
    where: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)


def prompt_names(prompts: Sequence[Prompt]) -> list[str]:
    """Name each prompt by its id, or its number; tell one id on different texts apart.

    Files put together may use the same ids, and judgements of different prompts must not be taken
    for judgements of one.
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


def judged(judge: Judge, pairs: Sequence[CompletionPair], *, a: str, b: str) -> Iterator[Judgement]:
    """Judge all pairs in order; equal completions are a tie that the judge is not asked about."""
    orders: tuple[Literal["a", "b"] | None, ...] = ("a", "b") if judge.has_order else (None,)
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        asked = [
            (pair, first) for pair in batch for first in orders if pair.output_a != pair.output_b
        ]
        verdicts = iter(judge.compare_many([_comparison(pair, first) for pair, first in asked]))
        for pair in batch:
            for first in orders:
                same = pair.output_a == pair.output_b
                verdict = Verdict(0.5, notes={"identical": True}) if same else next(verdicts)
                yield judgement_of(judge.name, pair, verdict, a=a, b=b, first=first)


def _comparison(pair: CompletionPair, first: str | None) -> Comparison:
    sides = (pair.output_a, pair.output_b)
    left, right = sides[::-1] if first == "b" else sides
    return Comparison(pair.prompt, left, right, pair.context, pair.where, pair.columns)


def judgement_of(
    judge: str,
    pair: CompletionPair,
    verdict: Verdict,
    *,
    a: str,
    b: str,
    first: Literal["a", "b"] | None = None,
) -> Judgement:
    """Say a verdict on left and right in terms of `a` and `b`; `first` stood on the left."""
    score = verdict.score
    if score is not None and first == "b":
        score = 1.0 - score
    sides = ("b", "a") if first == "b" else ("a", "b")
    names = dict(zip(("_left", "_right"), sides, strict=True))
    notes = {}
    for key, value in (verdict.notes or {}).items():
        stem, _, end = key.rpartition("_")
        notes[f"{stem}_{names['_' + end]}" if "_" + end in names else key] = value
    order = f"-{first}" if first else ""
    return Judgement(
        id=f"{pair.prompt_id}-{a}-{judge}-{pair.sample}{order}",
        prompt_id=pair.prompt_id,
        a=a,
        b=b,
        first=first,
        verdict=None if score is None else _word(score),
        score=score,
        judge=judge,
        prompt=pair.prompt,
        output_a=pair.output_a,
        output_b=pair.output_b,
        error=verdict.error,
        extra=(pair.extra or {}) | notes,
    )


def _word(score: float) -> Literal["a", "b", "tie"]:
    return "tie" if score == 0.5 else "a" if score > 0.5 else "b"

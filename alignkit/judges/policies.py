"""Compare policies: sample, measure the distance to the baseline, score, judge.

    completions of every policy for the same prompts, kept on disk
    log-ratios of each policy to the baseline on its own completions
    score judges score every completion; other judges compare it with the baseline's
`alignkit eval winrate --policies` and the stage `evaluate` both call `compare_policies`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.data.chat import Encoder
from alignkit.data.records import (
    Candidate,
    Candidates,
    Judgement,
    Message,
    Prompt,
    template_keys,
    to_json,
)
from alignkit.data.template_input import TemplateContext
from alignkit.judges import Judge, Verdict
from alignkit.judges.both_orders import CompletionPair, judged, judgement_of, prompt_names
from alignkit.judges.completions import Policy, PolicySampler, SampledCompletion
from alignkit.judges.scores import Score, ScoreJudge
from alignkit.scorers import WrittenCompletion
from alignkit.scorers.function import FunctionScorer
from alignkit.store.artifacts import write_durably
from alignkit.training.rows import place


@dataclass
class PolicyResult:
    """A policy's completions, the first of every prompt, then the second of every prompt, …

    `log_ratios`: log p(policy) - log p(baseline) of each, in nats, where it can be measured.
    `scores`: those of each score judge, by its name.
    """

    policy: str
    completions: list[SampledCompletion]
    log_ratios: list[float] | None = None
    scores: dict[str, list[Score]] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        return [completion.text for completion in self.completions]


@dataclass(frozen=True)
class PolicyComparison:
    """All policies on the same prompts, and every judge's judgements of them."""

    prompts: Sequence[Prompt]
    names: Sequence[str]
    results: Mapping[str, PolicyResult]
    judgements: Sequence[Judgement]

    def write(self, judgements: Path, candidates: Path) -> None:
        """Write the judgements, and the same completions for people to rank."""
        write_candidates(
            self.prompts, {name: r.texts for name, r in self.results.items()}, candidates
        )
        judgements.parent.mkdir(parents=True, exist_ok=True)
        write_durably(judgements, b"".join(map(to_json, self.judgements)))


def compare_policies(
    policies: Sequence[Policy],
    baseline: str,
    prompts: Sequence[Prompt],
    judges: Sequence[Judge],
    sampler: PolicySampler,
    *,
    settings: Mapping[str, Any],
    n_samples: int = 1,
) -> PolicyComparison:
    """Let the policies complete the prompts, and each judge compare them with the baseline.

    A judgement keeps what its prompt's row knew (category, group), the `settings` of sampling, and
    the log-ratio of a's completion. Nothing is written but what the sampler and the judges keep,
    so that a run that stopped samples and asks nothing twice.
    """
    _check_columns(judges, prompts)
    asked = list(prompts) * n_samples
    reference = next(policy for policy in policies if policy.name == baseline)
    results = {p.name: PolicyResult(p.name, sampler.completions(p, asked)) for p in policies}
    for policy in policies:
        own = results[policy.name]
        own.log_ratios = sampler.log_ratios(policy, reference, asked, own.completions)
    names = prompt_names(prompts)
    others = [results[policy.name] for policy in policies if policy is not reference]
    pairs = {
        ours.policy: _pairs(prompts, names, ours, results[baseline], settings) for ours in others
    }
    # A stage's reward model sits on the backbone that sampled, and reads the very tokens. Where
    # bases differ, so do tokens, and only the text is common ground.
    by_tokens = sampler.backbones.shares is not None
    judgements: list[Judgement] = []
    for judge in judges:
        if isinstance(judge, ScoreJudge):
            _score(judge, results.values(), policies, asked, sampler)
        with sampler.progress(len(asked) * len(others), f"{judge.name} judges") as advance:
            for ours in others:
                for judgement in _judged(
                    judge, pairs[ours.policy], ours, results[baseline], by_tokens=by_tokens
                ):
                    judgements.append(judgement)
                    advance(judgement.first != "b")
    return PolicyComparison(prompts, names, results, judgements)


def _check_columns(judges: Sequence[Judge], prompts: Sequence[Prompt]) -> None:
    """Refuse a function that asks for what a prompt's row does not hold, before anybody samples."""
    rows = [WrittenCompletion(p.prompt, "", where=place(p), columns=p.extra) for p in prompts]
    for judge in judges:
        if isinstance(judge, ScoreJudge) and isinstance(judge.scorer, FunctionScorer):
            judge.scorer.check_columns(rows)


def _pairs(
    prompts: Sequence[Prompt],
    names: Sequence[str],
    ours: PolicyResult,
    theirs: PolicyResult,
    settings: Mapping[str, Any],
) -> list[CompletionPair]:
    """Our completions beside the baseline's to the same prompts."""
    found = []
    for i, (own, other) in enumerate(zip(ours.texts, theirs.texts, strict=True)):
        sample, number = divmod(i, len(prompts))
        prompt = prompts[number]
        extra = prompt.extra | {"settings": dict(settings)}
        if ours.log_ratios is not None:
            extra["log_ratio_a"] = ours.log_ratios[i]
        found.append(
            CompletionPair(
                names[number],
                prompt.prompt,
                own,
                other,
                extra,
                TemplateContext.of(prompt),
                sample,
                place(prompt),
                prompt.extra,
            )
        )
    return found


def _score(
    judge: ScoreJudge,
    results: Iterable[PolicyResult],
    policies: Sequence[Policy],
    prompts: Sequence[Prompt],
    sampler: PolicySampler,
) -> None:
    """Score every completion once, whatever number of pairs it stands in."""
    shared = sampler.backbones.shares
    encoder = None if shared is None else Encoder(shared.tokenizer)
    with sampler.progress(len(prompts) * len(policies), f"{judge.name} scores") as advance:
        for result in results:
            items = [
                _written(prompt, completion, encoder)
                for prompt, completion in zip(prompts, result.completions, strict=True)
            ]
            result.scores[judge.name] = judge.scored(items)
            advance(len(items))


def _written(
    prompt: Prompt, completion: SampledCompletion, encoder: Encoder | None
) -> WrittenCompletion:
    context = TemplateContext.of(prompt)
    ids = None
    if encoder is not None:
        # A completion that was cut off is ended here: a reward model was trained to read the end.
        end = [] if completion.stopped else [encoder.end_token_id]
        ids = (encoder.prompt_ids(prompt.prompt, context=context), [*completion.ids, *end])
    return WrittenCompletion(
        prompt.prompt,
        completion.text,
        context,
        ids=ids,
        where=place(prompt),
        columns=prompt.extra,
    )


def _judged(
    judge: Judge,
    pairs: Sequence[CompletionPair],
    ours: PolicyResult,
    theirs: PolicyResult,
    *,
    by_tokens: bool,
) -> Iterator[Judgement]:
    a, b = ours.policy, theirs.policy
    if not isinstance(judge, ScoreJudge):
        yield from judged(judge, pairs, a=a, b=b)
        return
    scores = zip(ours.scores[judge.name], theirs.scores[judge.name], strict=True)
    for i, (pair, (left, right)) in enumerate(zip(pairs, scores, strict=True)):
        verdict = judge.verdict(left, right)
        same_tokens = ours.completions[i].ids == theirs.completions[i].ids
        if pair.output_a == pair.output_b and (same_tokens or not by_tokens):
            # A reward model's scores of one text differ in their last digits from batch to batch.
            verdict = Verdict(0.5, notes=verdict.notes)
        yield judgement_of(judge.name, pair, verdict, a=a, b=b)


def write_candidates(
    prompts: Sequence[Prompt], texts: Mapping[str, Sequence[str]], target: Path
) -> None:
    """Write the policies' completions as candidates for `alignkit rank`, which merges equal ones.

    One completion of each policy: people need not read every sample. Prompts that all policies
    complete alike leave nothing to rank and are left out.
    """
    rows = []
    for i, (prompt, name) in enumerate(zip(prompts, prompt_names(prompts), strict=True)):
        own = [sampled[i] for sampled in texts.values()]
        if len(set(own)) < 2:
            continue
        # The id of a candidate must not say whose it is: people judge blind.
        shown = [
            Candidate(
                cid=f"c{number}",
                messages=[Message(role="assistant", content=text)],
                model=policy,
            )
            for number, (policy, text) in enumerate(zip(texts, own, strict=True))
        ]
        rows.append(
            Candidates(
                id=name,
                prompt=list(prompt.prompt),
                candidates=shown,
                extra=prompt.extra,
                **template_keys(prompt),
            )
        )
    write_durably(target, b"".join(map(to_json, rows)))

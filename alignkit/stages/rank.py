"""Rankings of candidates by a judge that stands in for people, with people's noise.

    score each candidate by the judge; add N(0, noise); rank by the noisy score, equal is a tie
The candidate keeps its clean score, so that a reward model can be held against it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from alignkit.data.chat import Encoder
from alignkit.data.read import load_candidates, read_records
from alignkit.data.records import Candidates, Ranking, template_keys, to_json
from alignkit.data.template_input import TemplateContext
from alignkit.errors import DataError
from alignkit.forward.logps import Group
from alignkit.judges.gold import gold_score
from alignkit.recipe.settings import OUTPUTS, RankConfig
from alignkit.scorers.reward_model import RewardModel
from alignkit.stages.cost import loading_cost
from alignkit.stages.trial import Trial, TrialRows
from alignkit.store.artifacts import write_durably
from alignkit.training.context import StageContext


def run(config: RankConfig, context: StageContext) -> dict[str, Any]:
    """Write one ranking for each prompt with two candidates or more."""
    items = [
        item
        for item in map(without_repeats, _candidates(config, context))
        if len(item.candidates) > 1
    ]
    if not items:
        raise DataError("no prompt has two candidates", where=", ".join(config.candidates))
    scores = _scores(config, context, items)
    noise = random.Random(context.seed)
    rankings = [
        ranking_of(item, own, [s + noise.gauss(0.0, config.noise) for s in own], config.judge)
        for item, own in zip(items, scores, strict=True)
    ]
    write_durably(context.directory / OUTPUTS["rank"][""], b"".join(map(to_json, rankings)))
    return {"rankings": len(items), "candidates": sum(len(own) for own in scores)}


def trial(config: RankConfig, rows: TrialRows) -> Trial:
    """Try all candidates that are here; those that earlier stages add cost in proportion."""
    found, times = rows.records(config.candidates, load_candidates)
    rows.leaves(round(len(found) * times), len(found))
    return Trial(config.model_copy(update={"gate": {}}), {}, times, as_a_whole=True)


cost = loading_cost


def without_repeats(item: Candidates) -> Candidates:
    """The item with each completion once: two of the same cannot be ranked against each other."""
    texts = [
        [message.model_dump(exclude={"train", "extra"}) for message in c.messages]
        for c in item.candidates
    ]
    kept = [c for i, c in enumerate(item.candidates) if texts[i] not in texts[:i]]
    return item.model_copy(update={"candidates": kept})


def ranking_of(
    item: Candidates, own: Sequence[float], noisy: Sequence[float], annotator: str
) -> Ranking:
    """A ranking by the noisy scores, best first is 1, equal scores share a rank."""
    order = sorted(set(noisy), reverse=True)
    return Ranking(
        id=f"{item.id}-{annotator}",
        item=item.id,
        prompt=item.prompt,
        candidates=[
            candidate.model_copy(update={"score": score})
            for candidate, score in zip(item.candidates, own, strict=True)
        ],
        ranks={
            candidate.cid: order.index(score) + 1
            for candidate, score in zip(item.candidates, noisy, strict=True)
        },
        annotator=annotator,
        **template_keys(item),
    )


def _candidates(config: RankConfig, context: StageContext) -> list[Candidates]:
    found: list[Candidates] = []
    for source in config.candidates:
        path = context.data_file(source)
        found += [r for r in read_records(path) if isinstance(r, Candidates)]
    return found


def _scores(
    config: RankConfig, context: StageContext, items: Sequence[Candidates]
) -> list[list[float]]:
    if config.judge == "gold":
        return [
            [gold_score(item.prompt, c.messages[-1].content) for c in item.candidates]
            for item in items
        ]
    model = RewardModel.load(context.backbone, context.artifact(config.judge))
    encoder = Encoder(context.backbone.tokenizer)
    groups = []
    for item in items:
        told = TemplateContext.of(item)
        answers = [
            encoder.completion_ids(item.prompt, c.completion, context=told) for c in item.candidates
        ]
        groups.append(Group(encoder.prompt_ids(item.prompt, context=told), answers))
    flat = iter(model.scores(groups))
    context.backbone.clear()
    return [[next(flat) for _ in item.candidates] for item in items]

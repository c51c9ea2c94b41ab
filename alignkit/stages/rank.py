"""Rank candidates by a scorer that stands in for people, with people's noise.

    score each candidate; add N(0, noise); rank by the noisy score, equal is a tie
The candidate keeps its clean score, to measure a reward model by.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from alignkit.data.read import load_candidates, read_records
from alignkit.data.records import Candidates, Ranking, template_keys, to_json
from alignkit.errors import DataError
from alignkit.recipe.settings import OUTPUTS, RankConfig
from alignkit.scorers import Resources, open_scorer
from alignkit.scorers.backbones import Backbones
from alignkit.scorers.candidates import candidate_scores, prompts_of
from alignkit.scorers.function import FunctionScorer
from alignkit.stages.cost import loading_cost
from alignkit.stages.trial import Trial, TrialRows
from alignkit.store.artifacts import write_durably
from alignkit.training.context import StageContext

CANDIDATES_AT_ONCE = 64  # in one forward pass of a reward model


def run(config: RankConfig, context: StageContext) -> dict[str, Any]:
    """Write one ranking per prompt with two candidates or more."""
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
    """Keep each completion once: two equal ones cannot be ranked against each other."""
    texts = [
        [message.model_dump(exclude={"train", "extra"}) for message in c.messages]
        for c in item.candidates
    ]
    kept = [c for i, c in enumerate(item.candidates) if texts[i] not in texts[:i]]
    return item.model_copy(update={"candidates": kept})


def ranking_of(
    item: Candidates, own: Sequence[float], noisy: Sequence[float], annotator: str
) -> Ranking:
    """Rank by the noisy scores: the best is 1, equal scores share a rank."""
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
    """The judge's score of each candidate, item by item."""
    resources = Resources(
        backbones=Backbones.sharing(context.backbone),
        run=context.artifact,
        run_name=str,
        batch_size=CANDIDATES_AT_ONCE,
    )
    scorer = open_scorer(config.judge, resources)
    if isinstance(scorer, FunctionScorer):
        scorer.check_columns(prompts_of(items))
    found = candidate_scores(scorer, items)
    context.backbone.clear()
    return [list(scores.values()) for scores in found]

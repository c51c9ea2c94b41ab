"""Score the completions of a pool with finished reward runs, to vote on the best items first.

Importing this module loads torch; apart from chat_models nothing else in this package does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from alignkit.collect.items import Item, Pool
from alignkit.recipe.settings import BackboneConfig
from alignkit.scorers import Resources, open_scorer
from alignkit.scorers.backbones import Backbones
from alignkit.scorers.candidates import candidate_scores
from alignkit.scorers.reward_run import stored_temperature
from alignkit.store.artifacts import MANIFEST, read_manifest

COMPLETIONS_AT_ONCE = 16  # in one forward pass


def score_pool(pool: Pool, runs: Sequence[str], say: Callable[[str], None]) -> Pool:
    """Return the pool with `extra.scores`: for each run in `runs` its scores by cid.

    Scores are log-odds: they are divided by the run's calibrated temperature, if it has one.
    Earlier scores of an item are replaced; its text, hence its hash, is unchanged.
    """
    loaded: dict[str, Backbones] = {}
    by_run = {}
    for run in dict.fromkeys(runs):
        by_run[run] = _scores(run, pool, loaded)
        say(f"{run}: scored the completions of {len(pool.items)} items")
    items = {
        name: _with_scores(item, {run: scores[place] for run, scores in by_run.items()})
        for place, (name, item) in enumerate(pool.items.items())
    }
    return replace(pool, items=items)


def _scores(run: str, pool: Pool, loaded: dict[str, Backbones]) -> list[dict[str, float]]:
    """One mapping of cid to score per item, in the pool's order."""
    directory = Path(run)
    backbones = None
    if (directory / MANIFEST).is_file():
        # As it was trained: another quantization gives other scores.
        quantization = read_manifest(directory).backbone["quantization"]
        config = BackboneConfig(quantization=quantization)
        backbones = loaded.setdefault(quantization, Backbones(config))
    resources = Resources(backbones=backbones, batch_size=COMPLETIONS_AT_ONCE)
    scorer = open_scorer(f"reward:{run}", resources)
    found = candidate_scores(scorer, [item.record for item in pool.items.values()])
    temperature = stored_temperature(directory) or 1.0
    return [{cid: score / temperature for cid, score in scores.items()} for scores in found]


def _with_scores(item: Item, scores: dict[str, dict[str, float]]) -> Item:
    extra = {**item.record.extra, "scores": scores}
    return replace(item, record=item.record.model_copy(update={"extra": extra}))

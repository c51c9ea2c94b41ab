"""Score the completions of a pool with finished reward models, to vote on the best items first.

Importing this module loads torch; apart from chat_models nothing else in this package does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from alignkit.collect.items import Item, Pool
from alignkit.data.chat import Encoder
from alignkit.data.template_input import TemplateContext
from alignkit.errors import RecipeError
from alignkit.forward.logps import Group
from alignkit.judges.contest import Backbones
from alignkit.judges.scores import stored_temperature
from alignkit.model.files import find_model
from alignkit.recipe.settings import BackboneConfig
from alignkit.scorers.reward_model import RewardModel
from alignkit.store.artifacts import read_manifest

# Items per forward pass; each has 2 to 9 completions.
ITEMS_AT_ONCE = 4


def score_pool(pool: Pool, runs: Sequence[str], say: Callable[[str], None]) -> Pool:
    """Return the pool with `extra.scores`: for each run in `runs` its scores by cid.

    Scores are log-odds: they are divided by the run's calibrated temperature, if it has one.
    Earlier scores of an item are replaced; its text, hence its hash, is unchanged.
    """
    loaded: dict[str, Backbones] = {}
    by_run = {}
    for run in dict.fromkeys(runs):
        by_run[run] = list(_scores(run, pool, loaded))
        say(f"{run}: scored the completions of {len(pool.items)} items")
    items = {
        name: _with_scores(item, {run: scores[place] for run, scores in by_run.items()})
        for place, (name, item) in enumerate(pool.items.items())
    }
    return replace(pool, items=items)


def _scores(run: str, pool: Pool, loaded: dict[str, Backbones]) -> Iterator[dict[str, float]]:
    """Yield the scores by cid of each item, in the pool's order."""
    directory = Path(run)
    if not (directory / "adapter" / "head.safetensors").is_file():
        raise RecipeError(f"{run} is not a finished reward run", hint="Name its directory")
    # Score as it was trained: another quantization gives other scores.
    quantization = read_manifest(directory).backbone["quantization"]
    config = BackboneConfig(quantization=quantization)
    backbone = loaded.setdefault(quantization, Backbones(config)).of(find_model(run))
    model = RewardModel.load(backbone, directory)
    encoder = Encoder(backbone.tokenizer)
    groups = [_group(item, encoder) for item in pool.items.values()]
    scores = iter(model.scores(groups, ITEMS_AT_ONCE))
    temperature = stored_temperature(directory) or 1.0
    for item in pool.items.values():
        yield {c.cid: next(scores) / temperature for c in item.record.candidates}


def _group(item: Item, encoder: Encoder) -> Group:
    prompt, context = item.record.prompt, TemplateContext.of(item.record)
    completions = [
        encoder.completion_ids(prompt, c.completion, context=context)
        for c in item.record.candidates
    ]
    return Group(encoder.prompt_ids(prompt, context=context), completions)


def _with_scores(item: Item, scores: dict[str, dict[str, float]]) -> Item:
    extra = {**item.record.extra, "scores": scores}
    return replace(item, record=item.record.model_copy(update={"extra": extra}))

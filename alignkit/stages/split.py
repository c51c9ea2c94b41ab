"""Split data in two by prompt, so that no prompt is both trained and evaluated on."""

from __future__ import annotations

from typing import Any

from alignkit.data.edit.split import split_by_prompt
from alignkit.data.read import Stream
from alignkit.data.records import KINDS, Record, to_json
from alignkit.recipe.settings import OUTPUTS, SplitConfig
from alignkit.stages.cost import loading_cost
from alignkit.stages.trial import whole_trial
from alignkit.store.artifacts import write_durably
from alignkit.training.context import StageContext
from alignkit.training.data import load_all


def run(config: SplitConfig, context: StageContext) -> dict[str, Any]:
    """Write the training part and the held-out part as our own records."""

    def open_file(path: Any, **options: Any) -> Stream[Record]:
        return Stream(path, set(KINDS), iter, **options)

    records = load_all(open_file, config.data, config, context)
    train, held_out = split_by_prompt(records, config.held_out, context.seed)
    for part, rows in (("", train), ("held_out", held_out)):
        write_durably(context.directory / OUTPUTS["split"][part], b"".join(map(to_json, rows)))
    return {"train": len(train), "held_out": len(held_out)}


trial, cost = whole_trial, loading_cost

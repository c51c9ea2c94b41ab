"""Reading a stage's data: checked, named by format, split by prompt, dropped rows said aloud."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from alignkit.data.problems import tally
from alignkit.data.read import Loaded
from alignkit.data.records import Record
from alignkit.data.split import prompt_key, split_by_prompt
from alignkit.errors import DataError
from alignkit.recipe import OnlineConfig, SplitConfig, TrainingConfig
from alignkit.stages.context import StageContext
from alignkit.stages.rows import place

R = TypeVar("R", bound=Record)


def load_split(
    load: Callable[..., Loaded[Any]], config: TrainingConfig, context: StageContext
) -> tuple[list[Any], list[Any]]:
    """Training records and held-out ones: `eval_data`, or a share of the prompts of `data`."""
    train = load_all(load, config.data, config, context)
    if config.eval_data:
        held_out = load_all(load, config.eval_data, config, context)
        _tell_leaks(train, held_out, context)
        return train, held_out
    if config.eval_fraction:
        kept, held_out = split_by_prompt(train, config.eval_fraction, context.seed)
        return list(kept), list(held_out)
    return train, []


def _tell_leaks(train: Sequence[Record], held_out: Sequence[Record], context: StageContext) -> None:
    """Say how many evaluation rows ask what was trained on: they flatter every number."""
    known = {prompt_key(record) for record in train}
    leaked = [record for record in held_out if prompt_key(record) in known]
    if leaked:
        context.say(
            f"{len(leaked)} of {len(held_out)} evaluation rows have a prompt that is trained on, "
            f"the first is {place(leaked[0])}; alignkit data split keeps prompts apart"
        )


def load_all(
    load: Callable[..., Loaded[R]],
    sources: Sequence[str],
    config: TrainingConfig | OnlineConfig | SplitConfig,
    context: StageContext,
) -> list[R]:
    """The records of all files. Raises DataError when nothing is left."""
    records: list[R] = []
    for source in sources:
        path = context.data_file(source)
        loaded = load(path, format=config.format, on_bad_row=config.on_bad_row)
        context.say(f"{path.name}: {len(loaded.records)} rows, format {loaded.format}")
        for problem in loaded.dropped:
            context.say(f"dropped {problem}")
        doubtful = [problem for problem in loaded.problems if problem.level == "warning"]
        if doubtful:
            kinds = ", ".join(f"{kind} {count}" for kind, count in tally(doubtful).items())
            context.say(f"{path.name}: {kinds}; alignkit data check {path} names the lines")
        records += loaded.records
    if not records:
        raise DataError("no rows are left", where=", ".join(sources))
    return records

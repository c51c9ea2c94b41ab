"""Read the two side files of AlpacaEval's length control: difficulties and rows that regularise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from alignkit.errors import DataError
from alignkit.evaluation.judged_rows import LARGEST, Row, RowFile, number, shown
from alignkit.statistics.intervals import Floats
from alignkit.statistics.length_control import REGULARISER_WEIGHT, Regulariser


def _value(row: Row, key: str, where: str) -> float:
    try:
        return number(row.get(key), key, -LARGEST, LARGEST)
    except DataError as error:
        raise error.at(where) from None


def read_difficulty(path: str | Path) -> dict[str, float]:
    """Prompt text -> difficulty, from rows of instruction and instruction_difficulty.

    A text that stands there several times has their mean: nothing says which one was meant.
    """
    found: dict[str, list[float]] = {}
    for line, row in RowFile(path):
        where = f"{path}:{line}"
        text = row.get("instruction")
        if not isinstance(text, str):
            raise DataError(f"'instruction' must be a text, not {shown(text)}", where=where)
        found.setdefault(text, []).append(_value(row, "instruction_difficulty", where))
    return {text: sum(values) / len(values) for text, values in found.items()}


def difficulties(prompts: Sequence[str | None], known: Mapping[str, float], path: str) -> Floats:
    """The difficulty of each prompt, joined by its exact text."""
    values = []
    for text in prompts:
        if text is None or text not in known:
            shown = "a prompt without its text" if text is None else repr(text[:80])
            raise DataError(
                f"no difficulty for {shown}", where=path, hint="Each prompt needs a row here"
            )
        values.append(known[text])
    return np.array(values)


def read_regulariser(path: str | Path) -> Regulariser:
    """Rows of model, std_delta_len, instruction_difficulty and preference; total weight 0.2."""
    keys = ("std_delta_len", "instruction_difficulty", "preference")
    values, models = [], set()
    for line, row in RowFile(path):
        where = f"{path}:{line}"
        if not isinstance(row.get("model"), str):
            raise DataError(f"'model' must be a text, not {shown(row.get('model'))}", where=where)
        models.add(row["model"])
        values.append([_value(row, key, where) for key in keys])
        if not 0 <= values[-1][2] <= 1:
            raise DataError("'preference' must be from 0 to 1", where=where)
    delta, difficulty, preference = np.array(values).T
    weight = np.full(len(values), REGULARISER_WEIGHT / len(models))
    return Regulariser(delta, difficulty, preference, weight)

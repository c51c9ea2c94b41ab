"""Read the two extra files of AlpacaEval's length control: difficulties and regulariser rows."""

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
    """Map prompt text to difficulty, from rows of instruction and instruction_difficulty.

    A text that occurs several times gets the mean: nothing tells which row is meant.
    """
    values: dict[str, list[float]] = {}
    for line, row in RowFile(path):
        where = f"{path}:{line}"
        text = row.get("instruction")
        if not isinstance(text, str):
            raise DataError(f"'instruction' must be text, not {shown(text)}", where=where)
        values.setdefault(text, []).append(_value(row, "instruction_difficulty", where))
    return {text: sum(given) / len(given) for text, given in values.items()}


def difficulties(
    prompts: Sequence[str | None], difficulty_of: Mapping[str, float], path: str
) -> Floats:
    """Look up the difficulty of each prompt by its exact text."""
    values = []
    for text in prompts:
        if text is None or text not in difficulty_of:
            prompt = "a prompt without text" if text is None else repr(text[:80])
            raise DataError(
                f"no difficulty for {prompt}", where=path, hint="Add a row for each prompt"
            )
        values.append(difficulty_of[text])
    return np.array(values)


def read_regulariser(path: str | Path) -> Regulariser:
    """Read rows of model, std_delta_len, instruction_difficulty, preference; total weight 0.2."""
    keys = ("std_delta_len", "instruction_difficulty", "preference")
    values, models = [], set()
    for line, row in RowFile(path):
        where = f"{path}:{line}"
        if not isinstance(row.get("model"), str):
            raise DataError(f"'model' must be text, not {shown(row.get('model'))}", where=where)
        models.add(row["model"])
        values.append([_value(row, key, where) for key in keys])
        if not 0 <= values[-1][2] <= 1:
            raise DataError("'preference' must be from 0 to 1", where=where)
    delta, difficulty, preference = np.array(values).T
    weight = np.full(len(values), REGULARISER_WEIGHT / len(models))
    return Regulariser(delta, difficulty, preference, weight)

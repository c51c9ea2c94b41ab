"""The table of judgement formats. To add one: a module here with FORMAT, and its name in FORMATS.

Importing the table imports no format, so that the command line lists them at once.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from alignkit.errors import DataError, pick

if TYPE_CHECKING:
    from alignkit.evaluation.formats.shape import JudgementFormat, Row

# Order matters where keys overlap: a row has the first format whose keys it has.
FORMATS = ("judgement", "alpacaeval", "mtbench", "arena", "arenahard")


@cache
def formats() -> dict[str, JudgementFormat]:
    """Every format by name, in the order of the table."""
    return {name: import_module(f"{__name__}.{name}").FORMAT for name in FORMATS}


def format_named(name: str) -> JudgementFormat:
    """The format of that name, or a RecipeError with the nearest one."""
    return pick(formats(), name, what="format of judgements")


def recognise(row: Row) -> JudgementFormat:
    """The format whose keys the row has, or a DataError that names the formats."""
    for name, known in formats().items():
        if known.keys <= row.keys() or row.get("kind") == name:
            return known
    raise DataError(
        f"no known format of judgements has these keys: {', '.join(sorted(row)) or 'none'}",
        hint=f"Force one with --format {'|'.join(FORMATS)}",
    )

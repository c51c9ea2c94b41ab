"""The table of formats. To add one: a reader, a writer, and one line in its module's list.

Order matters where keys overlap: the first format that fits a row wins, so the one that asks for
more stands before the one that asks for less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from alignkit.data.formats import (
    argilla,
    chat,
    compared,
    exports,
    feedback,
    instruct,
    label_studio,
    own,
    published,
    trees,
)
from alignkit.data.formats.beside import BESIDE
from alignkit.data.formats.shape import Fields, Format, missing
from alignkit.errors import LONGEST_WORD, pick
from alignkit.files.problems import RowError

__all__ = ["FORMATS", "Fields", "Format", "detect", "format_named"]

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        *own.FORMATS,
        *trees.FORMATS,
        *chat.CONVERSATIONS,
        *published.FORMATS,
        *compared.FORMATS,
        *instruct.COMPARED,
        *argilla.FORMATS,
        *label_studio.FORMATS,
        *exports.FORMATS,
        *feedback.FORMATS,
        *instruct.FORMATS,
        *(plain for plain in chat.PLAIN if plain.kind != "prompt"),
        *instruct.PAIRS,
        *(plain for plain in chat.PLAIN if plain.kind == "prompt"),
        *instruct.QUESTIONS,
    )
}


def format_named(name: str) -> Format:
    """The format of that name, or a RecipeError with the nearest one."""
    return pick(FORMATS, name, what="format")


def detect(rows: Iterable[Mapping[str, Any]]) -> Format:
    """The format most of these rows have; RowError about the first row when none fits any."""
    listed = list(rows)
    votes = Counter(each.name for row in listed if (each := _first_fit(row)) is not None)
    if votes:
        return FORMATS[votes.most_common(1)[0][0]]
    if not listed:
        raise RowError("empty", "no records", "one JSON object per line")
    nearest = _nearest(listed[0])
    if nearest.keys <= listed[0].keys():
        return nearest  # its reader says what it misses
    raise missing(listed[0], nearest.keys)


# Keys that decide what a row is: one of them misspelt must not pass as an unknown key.
TELLING = frozenset(
    ("chosen", "rejected", "completion", "messages", "conversations", "output", "response")
)


def _first_fit(row: Mapping[str, Any]) -> Format | None:
    fit = next((each for each in FORMATS.values() if each.fits(row)), None)
    return None if fit is not None and _misspelt(row, fit) else fit


def _misspelt(row: Mapping[str, Any], form: Format | None = None) -> set[str]:
    """The telling keys that unknown keys of the row were probably meant to be."""
    unknown = row.keys() - TELLING - BESIDE - (form.own(row) if form else frozenset())
    named = (key for key in unknown if len(key) <= LONGEST_WORD)
    close = ((key, get_close_matches(key, TELLING, n=1, cutoff=0.85)) for key in named)
    # `output_1`, `responses` and `conversation_id` are names of their own, not slips.
    return {
        match
        for key, found in close
        for match in found
        if not key.startswith(match) and "_" not in key.strip("_")
    }


def _nearest(row: Mapping[str, Any]) -> Format:
    """The format whose keys are closest to the row's, misspelt keys counting in part."""

    named = [key for key in row if len(key) <= LONGEST_WORD]

    def closeness(each: Format) -> float:
        best = [
            max((SequenceMatcher(None, key, found).ratio() for found in named), default=0.0)
            for key in each.keys
        ]
        understood = len((each.keys | each.also) & row.keys())
        return sum(score for score in best if score > 0.75) / max(len(best), 1) + 0.25 * understood

    # Preferences are what most users of an unknown file mean: they win ties.
    ordered = sorted(FORMATS.values(), key=lambda each: each.name != "preference")
    meant = _misspelt(row)
    return max((each for each in ordered if meant <= each.keys), key=closeness, default=ordered[0])

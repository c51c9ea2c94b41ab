"""List all formats of rows. To add one: a reader, a writer, and one entry in its module's table.

Order matters where keys overlap: the first format that fits a row wins, so a format that requires
more keys comes before one that requires fewer.
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
from alignkit.data.formats.fields import Fields, Format, missing
from alignkit.data.formats.prompt_columns import ALL_NAMES
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
    """Return the format of that name; RecipeError with the nearest name if there is none."""
    return pick(FORMATS, name, what="format")


def detect(rows: Iterable[Mapping[str, Any]]) -> Format:
    """Return the format of most of these rows; RowError about the first row if none fits any."""
    rows = list(rows)
    votes = Counter(each.name for row in rows if (each := _first_fit(row)) is not None)
    if votes:
        return FORMATS[votes.most_common(1)[0][0]]
    if not rows:
        raise RowError("empty", "no records", "one JSON object per line")
    nearest = _nearest(rows[0])
    if nearest.keys <= rows[0].keys():
        return nearest  # its reader reports what is wrong
    raise missing(rows[0], nearest.keys)


# Keys that decide what a row is: a misspelled one must not pass as an unknown key.
DECISIVE = frozenset(
    ("chosen", "rejected", "completion", "messages", "conversations", "output", "response")
)


def _first_fit(row: Mapping[str, Any]) -> Format | None:
    fit = next((each for each in FORMATS.values() if each.fits(row)), None)
    return None if fit is not None and _misspelled(row, fit) else fit


def _misspelled(row: Mapping[str, Any], form: Format | None = None) -> set[str]:
    """Return the decisive keys that unknown keys of the row were probably meant to be."""
    unknown = row.keys() - DECISIVE - ALL_NAMES - (form.own(row) if form else frozenset())
    short = (key for key in unknown if len(key) <= LONGEST_WORD)
    close = ((key, get_close_matches(key, DECISIVE, n=1, cutoff=0.85)) for key in short)
    # `output_1`, `responses` and `conversation_id` are names of their own, not typing slips.
    return {
        match
        for key, matches in close
        for match in matches
        if not key.startswith(match) and "_" not in key.strip("_")
    }


def _nearest(row: Mapping[str, Any]) -> Format:
    """Return the format whose keys are closest to the row's; misspelled keys count partly."""
    names = [key for key in row if len(key) <= LONGEST_WORD]

    def closeness(each: Format) -> float:
        best = [
            max((SequenceMatcher(None, key, name).ratio() for name in names), default=0.0)
            for key in each.keys
        ]
        understood = len((each.keys | each.also) & row.keys())
        return sum(score for score in best if score > 0.75) / max(len(best), 1) + 0.25 * understood

    # Users with an unknown file mostly mean preferences: they win ties.
    ordered = sorted(FORMATS.values(), key=lambda each: each.name != "preference")
    meant = _misspelled(row)
    return max((each for each in ordered if meant <= each.keys), key=closeness, default=ordered[0])

"""Parse the notation of rankings: `2>1=3` puts 2 first, then 1 and 3 as a tie.

Places are the numbers on the screen, 1 to 9. `>` may be omitted (`213`). `*` means all the others,
tied (`2>*` picks a favourite). A place that is not named stays unranked, which is not the same as
worst. Between two completions one number is enough: `1` means `1>2`.
"""

from __future__ import annotations

from collections.abc import Mapping

from alignkit.errors import DataError

LARGEST = 9
_HINT = "Write the numbers best first, with '=' between ties: 2>1=3"


def parse_order(text: str, places: int) -> dict[int, int]:
    """Return the rank (1 is best, equal is a tie) of each place that `text` names.

    Raises DataError with the column of the mistake.
    """
    levels = _levels(text, places)
    named = [place for level in levels for place in level]
    if places == 2 and len(named) == 1:
        levels.append([place for place in (1, 2) if place not in named])
        named = [1, 2]
    if len(named) < 2:
        raise DataError("one number alone compares nothing", hint="2>* puts 2 before the others")
    return {place: rank for rank, level in enumerate(levels, start=1) for place in level}


def order_text(ranks: Mapping[int, int]) -> str:
    """Format `ranks` as it would be typed; `parse_order` reverses it."""
    levels: dict[int, list[int]] = {}
    for place, rank in ranks.items():
        levels.setdefault(rank, []).append(place)
    return ">".join("=".join(map(str, sorted(levels[rank]))) for rank in sorted(levels))


def _levels(text: str, places: int) -> list[list[int]]:
    levels: list[list[int]] = []
    seen: set[str] = set()
    joined = False
    pending = ""
    for column, mark in enumerate(text, start=1):
        if mark.isspace():
            continue
        if mark in ">=":
            if pending or not levels:
                raise DataError(f"column {column}: {mark!r} has no number before it", hint=_HINT)
            pending, joined = mark, mark == "="
            continue
        members = _members(mark, column, places, text, seen)
        if joined:
            levels[-1].extend(members)
        else:
            levels.append(members)
        pending, joined = "", False
    if pending:
        raise DataError(f"{text.strip()!r} ends in {pending!r}", hint=_HINT)
    if not levels:
        raise DataError("no order given", hint=_HINT)
    return [sorted(level) for level in levels]


def _members(mark: str, column: int, places: int, text: str, seen: set[str]) -> list[int]:
    if mark in seen:
        raise DataError(f"column {column}: {mark} occurs twice", hint=_HINT)
    seen.add(mark)
    if mark == "*":
        rest = [place for place in range(1, places + 1) if str(place) not in text]
        if not rest:
            raise DataError("'*' means all the others, but every place is named", hint=_HINT)
        return rest
    if not ("1" <= mark <= str(places)):
        raise DataError(f"column {column}: {mark!r} is not one of 1 to {places}", hint=_HINT)
    return [int(mark)]

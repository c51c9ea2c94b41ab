"""Parse shares by name (`train=0.9,test=0.1`), and read the value of a record's field."""

from __future__ import annotations

from alignkit.data.records import Record
from alignkit.errors import RecipeError


def parse_shares(text: str) -> dict[str, float]:
    """Parse `train=0.9,test=0.1` into names and numbers."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.strip().partition("=")
        try:
            shares[name] = float(number)
        except ValueError:
            name = ""
        if not name or not equals or shares[name] < 0:
            raise RecipeError(
                f"{part.strip()!r} is not NAME=NUMBER", hint="Fix: train=0.9,test=0.1"
            )
    return shares


def field_of(record: Record, path: str) -> str:
    """Return the value of a field, or of a key in `extra`, as text; empty if it is absent."""
    value: object = record.model_dump(include={path.split(".")[0]} - {"extra"})
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        value = record.extra
        for part in path.removeprefix("extra.").split("."):
            value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def parse_weight(text: str) -> tuple[str, float]:
    """Parse `FILE=0.7` into (file, weight); a file alone weighs 1, even if its name has a `=`."""
    name, equals, number = text.rpartition("=")
    try:
        return (name, float(number)) if equals and name else (text, 1.0)
    except ValueError:
        return text, 1.0

"""Shares by name (`train=0.9,test=0.1`) and the value of a field a record carries."""

from __future__ import annotations

from alignkit.data.records import Record
from alignkit.errors import RecipeError


def parse_shares(text: str) -> dict[str, float]:
    """`train=0.9,test=0.1` as names and numbers."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.strip().partition("=")
        try:
            shares[name] = float(number)
        except ValueError:
            name = ""
        if not name or not equals or shares[name] < 0:
            raise RecipeError(f"{part.strip()!r} is no NAME=NUMBER", hint="Fix: train=0.9,test=0.1")
    return shares


def field_of(record: Record, path: str) -> str:
    """The value of a field, or of a key in `extra`, as text; empty when it is not there."""
    value: object = record.model_dump(include={path.split(".")[0]} - {"extra"})
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        value = record.extra
        for part in path.removeprefix("extra.").split("."):
            value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def parse_weight(text: str) -> tuple[str, float]:
    """`FILE=0.7` as (file, weight); a file alone weighs 1, also when its name holds a sign."""
    name, equals, number = text.rpartition("=")
    try:
        return (name, float(number)) if equals and name else (text, 1.0)
    except ValueError:
        return text, 1.0

"""Swap the sides of preferences whose scores contradict them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alignkit.data.edit.convert import AS_READ
from alignkit.data.records import Preference, Record
from alignkit.data.rules import findings

SIDES = (("chosen", "rejected"), ("prompt_chosen", "prompt_rejected"))


def swapped(record: Record) -> Record:
    """Return the preference with its sides swapped, and all that belongs to each (scores, models).

    Return the record itself if nothing shows its rejected completion to be better.
    """
    if not isinstance(record, Preference):
        return record
    if all(finding.kind != "negative-margin" for finding in findings(record)):
        return record
    before = record.model_dump()
    after = dict(before, extra=_turned(before["extra"]))
    for chosen, rejected in SIDES:
        after[chosen], after[rejected] = before[rejected], before[chosen]
    if record.margin is not None:
        after["margin"] = abs(record.margin)
    return Preference.model_validate(after)


def _turned(extra: dict[str, Any]) -> dict[str, Any]:
    """Swap what came with each side; drop the row as read, which no longer holds."""
    turned = {name: value for name, value in extra.items() if name != AS_READ}
    for name in turned:
        other = name.replace("chosen", "rejected")
        if other != name and other in turned:
            turned[name], turned[other] = extra[other], extra[name]
    return turned


def differences(before: Record, after: Record) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield (path, old value, new value) per changed field, those of `extra` one by one."""
    old, new = before.model_dump(), after.model_dump()
    for key in old:
        if key != "extra" and old[key] != new[key]:
            yield (key,), old[key], new[key]
    for key, value in old["extra"].items():
        if value != new["extra"].get(key):
            yield ("extra", key), value, new["extra"].get(key)

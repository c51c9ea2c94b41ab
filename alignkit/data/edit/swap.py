"""Preferences whose scores say the contrary of their sides, turned round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alignkit.data.edit.convert import AS_READ
from alignkit.data.records import Preference, Record
from alignkit.data.rules import findings

SIDES = (("chosen", "rejected"), ("prompt_chosen", "prompt_rejected"))


def swapped(record: Record) -> Record:
    """The preference with its sides exchanged, and all that came with each (scores, models).

    The record itself when nothing says that its rejected answer is the better one.
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
    """What came with each side, with the other side; the row as it was read no longer holds."""
    turned = {name: value for name, value in extra.items() if name != AS_READ}
    for name in turned:
        other = name.replace("chosen", "rejected")
        if other != name and other in turned:
            turned[name], turned[other] = extra[other], extra[name]
    return turned


def differences(before: Record, after: Record) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """(path, old value, new value) of each field that changed, those of `extra` one by one."""
    old, new = before.model_dump(), after.model_dump()
    for key in old:
        if key != "extra" and old[key] != new[key]:
            yield (key,), old[key], new[key]
    for key, value in old["extra"].items():
        if value != new["extra"].get(key):
            yield ("extra", key), value, new["extra"].get(key)

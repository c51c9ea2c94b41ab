"""Changes to a JSON text that leave it JSON: what mutation byte by byte hardly ever does."""

from __future__ import annotations

import json
import random
from typing import Any

VALUES: list[Any] = [
    None, True, 0, -1, 1, 4, 1.5, 10**30, 1e308, "", "a", "\x00", "../x", "/etc/passwd", "0" * 64,
    "metrics.jsonl", "tensor", "array", "dict", "tuple", "list", [], {}, [[]], {"a": {}}, [0, 16],
    [16, 0], {"sha256": "0" * 64, "size": 3}, ["tensor", "0"], ["dict", [[["list", []], 1]]],
]  # fmt: skip


def changed(content: bytes, draw: random.Random) -> bytes:
    """The same JSON with one entry replaced, removed, added or repeated; other bytes as they are.

    A first byte that is no part of the JSON stays in front of it.
    """
    for start in (0, 1):
        try:
            value = json.loads(content[start:])
        except (ValueError, RecursionError):
            continue
        return content[:start] + json.dumps(_change(value, draw)).encode()
    return content


def _change(value: Any, draw: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return draw.choice(VALUES)
    places: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    place = draw.choice(places)
    action = draw.choice((_inside, _inside, _removed, _repeated))
    return action(value, place, draw)


def _inside(value: Any, place: Any, draw: random.Random) -> Any:
    new = value.copy()
    new[place] = _change(value[place], draw)
    return new


def _removed(value: Any, place: Any, draw: random.Random) -> Any:
    del draw
    new = value.copy()
    del new[place]
    return new


def _repeated(value: Any, place: Any, draw: random.Random) -> Any:
    if isinstance(value, list):
        return [*value, value[place]]
    return value | {draw.choice([*value, "new"]): value[place]}

"""Write the embedded data sets as JSONL records: the same seed gives the same bytes.

A hash of its text decides which data set may use an ask. So no prompt of `test` or `validation` is
ever in a training set, whatever the seeds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from alignkit.errors import pick
from alignkit.store.whole_files import write_whole
from alignkit.tiny.task import Ask, distinct_asks, write_completion

# Range of `Ask.share` for each use of an ask; the pretraining corpus has a range of its own.
SHARES: dict[str, tuple[float, float]] = {
    "corpus": (0.0, 0.3),
    "demonstrations": (0.3, 0.5),
    "prompts": (0.5, 0.8),
    "validation": (0.8, 0.9),
    "test": (0.9, 1.0),
}
# Demonstrations come from ordinary people: mostly right, rarely kind, sometimes wrong.
DEMONSTRATION_SKILL = (0.4, 0.95)
COMPLETIONS_PER_PROMPT = 3


@dataclass(frozen=True)
class DataSet:
    """How many rows, whose asks, and what is written for an ask."""

    rows: int
    share: str
    record: Callable[[str, Ask, random.Random], dict[str, Any]]


def write(name: str, seed: int, path: Path, *, rows: int | None = None) -> Path:
    """Write the named data set to `path` and return it; `rows` overrides its default size."""
    rows_of_json = b"".join(orjson.dumps(row) + b"\n" for row in records(name, seed, rows=rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, rows_of_json)
    return path


def records(name: str, seed: int, *, rows: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of the named data set. Raises RecipeError for a name that is none.

    Asks and completions have separate generators: `prompts` and `candidates` of one seed have the
    same asks under the same ids, so sampled and written completions merge by prompt.
    """
    data_set = pick(DATA_SETS, name, what="embedded data set")
    asks = distinct_asks(
        random.Random(f"alignkit-tiny/{data_set.share}/{seed}"), *SHARES[data_set.share]
    )
    completions = random.Random(f"alignkit-tiny/{name}-answers/{seed}")
    for number, ask in enumerate(islice(asks, rows or data_set.rows)):
        yield data_set.record(f"{data_set.share}-{seed}-{number}", ask, completions)


def user(ask: Ask) -> dict[str, str]:
    return {"role": "user", "content": ask.text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def prompt(identity: str, ask: Ask, _rng: random.Random) -> dict[str, Any]:
    """Return an ask alone."""
    return {"v": 1, "kind": "prompt", "id": identity, "prompt": [user(ask)]}


def demonstration(identity: str, ask: Ask, rng: random.Random) -> dict[str, Any]:
    """Return an ask with one completion of ordinary skill."""
    completion = write_completion(ask, rng.uniform(*DEMONSTRATION_SKILL), rng)
    messages = [user(ask), assistant(completion)]
    return {"v": 1, "kind": "demonstration", "id": identity, "messages": messages}


def candidates(identity: str, ask: Ask, rng: random.Random) -> dict[str, Any]:
    """Return an ask with different completions, each written with another skill."""
    completions: list[str] = []
    while len(completions) < COMPLETIONS_PER_PROMPT:
        completion = write_completion(ask, rng.random(), rng)
        if completion not in completions:
            completions.append(completion)
    rows = [
        {"cid": f"w{number}", "messages": [assistant(completion)], "model": "written"}
        for number, completion in enumerate(completions)
    ]
    return {
        "v": 1,
        "kind": "candidates",
        "id": identity,
        "prompt": [user(ask)],
        "candidates": rows,
    }


DATA_SETS: dict[str, DataSet] = {
    "demonstrations": DataSet(1500, "demonstrations", demonstration),
    "prompts": DataSet(1200, "prompts", prompt),
    "candidates": DataSet(1200, "prompts", candidates),
    "validation": DataSet(128, "validation", prompt),
    "test": DataSet(256, "test", prompt),
}

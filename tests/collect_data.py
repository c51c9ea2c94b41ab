"""Small collections for the tests of ranking."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from alignkit.collect.items import Pool, pool_of
from alignkit.collect.log import EventLog
from alignkit.collect.plan import Settings
from alignkit.collect.session import Collection
from alignkit.data.records import Candidates

XSS = (
    "<script>window.PWN=1</script>",
    '"><img src=x onerror="window.PWN=1">',
    "</textarea></script><svg/onload=window.PWN=1>",
)


def item(
    number: int | str,
    answers: Sequence[str] = ("yes", "no"),
    *,
    prompt: str | None = None,
    models: Sequence[str] | None = None,
    **fields: object,
) -> Candidates:
    """One record; cids are c0, c1, …, models secret-model-0, …"""
    return Candidates.model_validate(
        {
            "id": f"item-{number}",
            "prompt": [{"role": "user", "content": prompt or f"question {number}?"}],
            "candidates": [
                {
                    "cid": f"c{place}",
                    "messages": [{"role": "assistant", "content": answer}],
                    "model": models[place] if models else f"secret-model-{place}",
                }
                for place, answer in enumerate(answers)
            ],
            **fields,
        }
    )


def items(count: int, answers: int = 2) -> list[Candidates]:
    """`count` records with distinct answers."""
    return [item(n, [f"answer {n}.{place}" for place in range(answers)]) for n in range(count)]


def write(path: Path, records: Sequence[Candidates]) -> Path:
    path.write_text("".join(record.model_dump_json() + "\n" for record in records))
    return path


@contextmanager
def collecting(
    output: Path, records: Sequence[Candidates] | Pool, *annotators: str, **settings: object
) -> Iterator[Collection]:
    """A collection over these records, its log open."""
    pool = records if isinstance(records, Pool) else pool_of(records)
    stop = bool(settings.pop("stop_when_decided", False))
    with EventLog(output) as log:
        yield Collection(
            pool,
            log,
            Settings(annotators=annotators or ("ann",), **settings),  # type: ignore[arg-type]
            stop_when_decided=stop,
        )


def lines(path: Path) -> list[dict[str, object]]:
    """The file's lines, split as our readers split them."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]

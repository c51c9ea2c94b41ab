"""Cache reference log-probs on disk by content: a second epoch or a second run computes none.

The key is everything that a log-prob depends on: the base and its storage, the adapter's weights,
dtype and path of the forward, and the token ids. A change of beta, loss or learning rate, of batch
or order, still hits; another quantization, adapter or template misses.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor

from alignkit.errors import DataError, DiskFull
from alignkit.forward.packing import Group
from alignkit.store.content_hash import cache_directory

logger = logging.getLogger(__name__)

Wanted = Literal["auto", "always", "never"]

FILE = "reference_logps.sqlite"
FORMAT = "2"  # part of every key: raise it when the forward's numbers change


@dataclass(frozen=True)
class ReferenceIdentity:
    """What computed the log-probs: base fingerprint, adapter hash (None: bare base), and how."""

    backbone: str
    adapter: str | None
    dtype: str
    path: str
    temperature: float = 1.0

    @property
    def digest(self) -> bytes:
        """sha256 over all fields and the format; part of every key."""
        parts = (FORMAT, self.backbone, self.adapter or "", self.dtype, self.path)
        return hashlib.sha256("\0".join((*parts, repr(self.temperature))).encode()).digest()


class ReferenceCache:
    """Summed completion log-probs by content; as a context manager, closes its file.

    One SQLite file per directory. Writers of several runs wait for each other; a killed one leaves
    whole rows or none.
    """

    def __init__(self, directory: Path, identity: ReferenceIdentity) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.file = directory / FILE
        self.identity = identity
        self.hits = 0
        self.computed = 0
        self._database = self._open()

    def __enter__(self) -> ReferenceCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def sums(self, groups: Sequence[Group], compute: Callable[[Sequence[Group]], Tensor]) -> Tensor:
        """Return summed log-probs (completions,) in fp32, in order of groups, then completions.

        `compute` is called at most once, with the groups that have a completion not in the cache.
        Raise DiskFull when its results cannot be stored.
        """
        keys = [[self.key(g.prompt, c) for c in g.completions] for g in groups]
        cached = self._read([key for group in keys for key in group])
        missing = [i for i, group in enumerate(keys) if not all(key in cached for key in group)]
        if missing:
            fresh = compute([groups[i] for i in missing])
            wanted = [key for i in missing for key in keys[i]]
            values = dict(zip(wanted, fresh.detach().float().cpu().tolist(), strict=True))
            self._write(values)
            cached |= values
        self.computed += len(missing)
        self.hits += len(groups) - len(missing)
        return torch.tensor([cached[key] for group in keys for key in group])

    def holds(self, groups: Sequence[Group]) -> float:
        """Return the share of completions that are in the cache."""
        keys = {self.key(g.prompt, c) for g in groups for c in g.completions}
        return len(self._read(list(keys))) / max(len(keys), 1)

    def key(self, prompt: Sequence[int], completion: Sequence[int]) -> bytes:
        """Return sha256 over the identity and both sequences of ids, their lengths included."""
        digest = hashlib.sha256(self.identity.digest)
        for ids in (prompt, completion):
            # With lengths: [1, 2] + [3] and [1] + [2, 3] are different keys.
            digest.update(len(ids).to_bytes(8, "little"))
            digest.update(torch.tensor(list(ids), dtype=torch.int64).numpy().tobytes())
        return digest.digest()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _open(self) -> sqlite3.Connection:
        database: sqlite3.Connection | None = None
        try:
            database = sqlite3.connect(self.file, timeout=60, isolation_level=None)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute(
                "CREATE TABLE IF NOT EXISTS logps (key BLOB PRIMARY KEY, sum REAL) WITHOUT ROWID"
            )
        except sqlite3.DatabaseError as error:
            if database is not None:
                database.close()
            raise DataError(
                f"the reference cache cannot be read: {error}",
                where=str(self.file),
                hint="Delete the file; it is computed again.",
            ) from None
        return database

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        sums: dict[bytes, float] = {}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            # The statement contains question marks only; keys are bound.
            query = f"SELECT key, sum FROM logps WHERE key IN ({marks})"
            sums.update(self._database.execute(query, part))
        return sums

    def _write(self, values: dict[bytes, float]) -> None:
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT OR REPLACE INTO logps VALUES (?, ?)", values.items())
            self._database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            if "full" in str(error):
                raise DiskFull(
                    "disk full: no space for the reference cache",
                    where=str(self.file),
                    hint="Free space, or set cache_reference: never.",
                ) from None
            raise


def open_cache(
    wanted: Wanted, identity: ReferenceIdentity, sample: Sequence[Group], *, epochs: float
) -> ReferenceCache | None:
    """Return the cache if it will be read: `auto` needs a second epoch or an earlier run's numbers.

    Filling the cache costs as much as it saves in one pass, so a single epoch goes without. A cache
    that cannot be opened is an error only for `always`.
    """
    directory = cache_directory()
    if wanted == "never":
        return None
    if wanted == "auto" and epochs <= 1 and not (directory / FILE).exists():
        return None
    try:
        cache = ReferenceCache(directory, identity)
    except (DataError, OSError) as error:
        if wanted == "always":
            raise
        logger.warning("reference log-probs are computed without the cache: %s", error)
        return None
    if wanted == "always" or epochs > 1 or cache.holds(sample) > 0:
        return cache
    cache.close()
    return None

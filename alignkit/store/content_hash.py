"""The sha256 of what a file holds, remembered until the file changes; verdicts by content as well.

Names and links say nothing about a content, so every byte is read, once: several gigabytes take
seconds, and the next command finds the hash again by device, inode, size and the times of the last
change. No program can set the last of them, the inode's own time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

FILE = "contents.sqlite"
SMALL = 4 << 20  # bytes that are read again sooner than they are looked up
# A file changed again within the clock's grain looks the same: what is younger is not remembered.
SETTLED_NANOSECONDS = 2_000_000_000


def cache_directory() -> Path:
    """$ALIGNKIT_CACHE, or alignkit's place among the user's caches."""
    if place := os.environ.get("ALIGNKIT_CACHE"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "alignkit"


def content_hash(path: Path) -> str:
    """sha256 of a file's content, whatever its name and whatever links lead to it."""
    with path.open("rb") as stream:
        before = os.fstat(stream.fileno())
        key = _identity(before)
        known = recall(key) if before.st_size >= SMALL else None
        if known is not None:
            return known
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        unchanged = _identity(os.fstat(stream.fileno())) == key
    age = time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns)
    if before.st_size >= SMALL and unchanged and age > SETTLED_NANOSECONDS:
        remember(key, found)
    return found


def content_hashes(paths: Sequence[Path]) -> list[str]:
    """The same for several files side by side, in their order."""
    with ThreadPoolExecutor(min(8, max(1, len(paths)))) as threads:
        return list(threads.map(content_hash, paths))


def _identity(status: os.stat_result) -> str:
    parts = (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    return "sha256 " + " ".join(map(str, parts))


def recall(key: str) -> str | None:
    """What was remembered under a key; None when nothing was, or the memory cannot be read."""
    if not (cache_directory() / FILE).exists():
        return None
    try:
        with _memory() as memory:
            row = memory.execute("SELECT value FROM known WHERE key = ?", (key,)).fetchone()
    except (sqlite3.Error, OSError) as error:
        logger.info("the memory of contents cannot be read: %s", error)
        return None
    return None if row is None else str(row[0])


def remember(key: str, value: str) -> None:
    """Keep a value for later commands; a cache that cannot be written only costs time."""
    try:
        with _memory() as memory, memory:
            memory.execute("INSERT OR REPLACE INTO known VALUES (?, ?)", (key, value))
    except (sqlite3.Error, OSError) as error:
        logger.info("the memory of contents cannot be written: %s", error)


@contextmanager
def _memory() -> Iterator[sqlite3.Connection]:
    """The table of what is known, made when it is missing, for its owner alone."""
    place = cache_directory()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(place / FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
    with closing(sqlite3.connect(place / FILE, timeout=10)) as memory:
        memory.execute("CREATE TABLE IF NOT EXISTS known (key TEXT PRIMARY KEY, value TEXT)")
        yield memory

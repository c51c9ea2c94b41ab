"""Keep a judge's replies on disk: a question is asked once, however often a run restarts."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from alignkit.errors import RecipeError


class ReplyCache:
    """Replies by key; each is on disk before `put` returns. Threads and processes may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        database: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(path, timeout=30, check_same_thread=False)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply BLOB NOT NULL)"
            )
            database.commit()
        except (OSError, sqlite3.Error) as error:
            if database is not None:
                database.close()
            raise RecipeError(
                f"cannot keep the judge's replies: {error}", where=str(path), hint="Name another"
            ) from None
        self._database = database

    def get(self, key: str) -> bytes | None:
        with self._lock:
            row = self._database.execute(
                "SELECT reply FROM replies WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else bytes(row[0])

    def put(self, key: str, reply: bytes) -> None:
        with self._lock, self._database:
            self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, reply))

    def __len__(self) -> int:
        with self._lock:
            return int(self._database.execute("SELECT count(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._database.close()

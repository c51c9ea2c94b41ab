"""Append what annotators do to an event file: every acknowledged event is in the file once.

One process writes, under a lock that it holds for its lifetime. An event is one line, written by
one `os.write` and synced to disk before `append` returns. The next start moves a line that was cut
short by a power failure to `FILE.partial` and reports it. Nothing is ever rewritten: an undo is an
event too.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import orjson
from filelock import FileLock, Timeout

from alignkit.data.pairs import rankings_from_votes
from alignkit.data.records import Candidates, Event, Ranking, to_json
from alignkit.data.voting import standing
from alignkit.errors import AlignkitError, DataError, DiskFull, UserError
from alignkit.files.json_text import decode
from alignkit.files.problems import Problem, RowError
from alignkit.files.rows import MAX_LINE, read_jsonl
from alignkit.files.validated import validated

VOTES = ("rank", "pair")
Stored = Literal["saved", "duplicate"]

# Two events with these fields equal are the same act; a retry differs in times and chain only.
_ACT = (
    "annotator",
    "item",
    "action",
    "ranks",
    "all_bad",
    "strength",
    "comment",
    "reason",
    "supersedes",
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Conflict(DataError):
    """An event whose id, or whose showing, already has a different event."""


class EventLog:
    """The only writer of an event file; a context manager that holds its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reports: list[str] = []
        self._acts: dict[str, bytes] = {}
        self._lock = FileLock(f"{path}.lock", mode=0o600)
        self._fd = -1
        self._size = 0
        self._prev: str | None = None
        self._broken: str | None = None
        self._new = self._new_lock = self._stored = False

    def __enter__(self) -> EventLog:
        if self.path.exists() and not self.path.is_file():
            raise DataError(
                "is a directory" if self.path.is_dir() else "is a pipe or a device",
                where=str(self.path),
                hint="Events must be synced and read again: name a regular file",
            )
        _refuse_other_files(self.path)
        self._new = not self.path.exists()
        self._new_lock = not os.path.exists(self._lock.lock_file)
        self._take_lock()
        try:
            self._open()
        except BaseException as error:
            self._remove_new_files(error)
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove_new_files(error)
        self.close()

    def _remove_new_files(self, error: BaseException | None) -> None:
        """After a refusal, remove the files created for it, unless an event was stored.

        A process that opens the lock file in between is refused for the same reason.
        """
        if self._stored or not isinstance(error, UserError):
            return
        if self._new and self._fd >= 0:
            self.path.unlink(missing_ok=True)
        if self._new_lock:
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file and release its lock; may be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._lock.release()

    def replay(self) -> Iterator[Event]:
        """Yield every event of the file, oldest first."""
        yield from iter_events(self.path)

    def append(self, event: Event) -> Stored:
        """Store the event; on return it is on disk. The same event again is a duplicate."""
        act = act_of(event)
        if event.id in self._acts:
            self.check(event)
            return "duplicate"
        line = to_json(event.model_copy(update={"prev": self._prev}))
        self._check_file()
        self._write(line)
        self._stored = True
        self._acts[event.id] = act
        self._prev = hashlib.sha256(line[:-1]).hexdigest()
        return "saved"

    def check(self, event: Event) -> None:
        """Raise Conflict if another event with the same id is stored."""
        if self._acts.get(event.id, b"") not in (b"", act_of(event)):
            raise Conflict(f"event {event.id} is already stored with different content")

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._acts

    def _take_lock(self) -> None:
        lock_file = Path(self._lock.lock_file)
        try:
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            holder = lock_file.read_text() if lock_file.exists() else ""
            self._lock.acquire(blocking=False)
            lock_file.write_text(f"{os.getpid()}\n")
        except Timeout:
            who = f"process {holder.strip()}" if holder.strip() else "another process"
            raise DataError(
                f"{who} is collecting into this file",
                where=str(self.path),
                hint="Stop it first, or give --output another file",
            ) from None
        except OSError as error:
            self._lock.release()
            raise DataError(f"cannot write here: {error.strerror}", where=str(self.path)) from None

    def _open(self) -> None:
        new = not self.path.exists()
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise DataError(f"cannot open: {error.strerror}", where=str(self.path)) from None
        if new:
            _sync_directory(self.path.parent)
        self._heal()
        last = b""
        for line, event in _lines_and_events(self.path, self.reports.append):
            self._acts[event.id] = act_of(event)
            last = line
        self._prev = hashlib.sha256(last).hexdigest() if last else None
        self._size = os.fstat(self._fd).st_size

    def _heal(self) -> None:
        """Move an unfinished last line aside; complete it if only the newline is missing."""
        tail = _torn_tail(self.path)
        if not tail:
            return
        if _is_event(tail):
            os.write(self._fd, b"\n")
            os.fsync(self._fd)
            self.reports.append(f"{self.path}: added the missing newline of the last line")
            return
        partial = Path(f"{self.path}.partial")
        with partial.open("ab") as aside:
            aside.write(tail + b"\n")
            aside.flush()
            os.fsync(aside.fileno())
        os.ftruncate(self._fd, os.fstat(self._fd).st_size - len(tail))
        os.fsync(self._fd)
        self.reports.append(
            f"{self.path}: the last line was cut short ({len(tail)} bytes, never acknowledged);"
            f" moved to {partial}"
        )

    def _check_file(self) -> None:
        """Refuse to write into a file that was replaced or edited despite the lock."""
        if self._broken:
            raise AlignkitError(self._broken, where=str(self.path))
        opened = os.fstat(self._fd)
        try:
            current = os.stat(self.path)
        except FileNotFoundError:
            current = None
        if current is None or (current.st_dev, current.st_ino) != (opened.st_dev, opened.st_ino):
            raise AlignkitError("the file was moved or replaced", where=str(self.path), hint=_AGAIN)
        if opened.st_size != self._size:
            raise AlignkitError(
                "another program changed the file", where=str(self.path), hint=_AGAIN
            )

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._fd)
        except OSError as error:
            self._roll_back(error)
        self._size += len(line)

    def _roll_back(self, cause: OSError) -> None:
        """Truncate the file to its last complete event and raise the reason."""
        try:
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
        except OSError as error:
            self._broken = f"cannot be repaired while it is open: {error.strerror}"
        if cause.errno in _NO_ROOM:
            raise DiskFull(
                "disk full; the last vote was not saved, all earlier ones were",
                where=str(self.path),
                hint="Free some space and vote again",
            ) from None
        # After EIO the kernel may have dropped dirty pages: a later successful sync proves nothing.
        self._broken = f"the disk failed: {cause.strerror}"
        raise AlignkitError(self._broken, where=str(self.path), hint=_AGAIN) from None


_AGAIN = "Stop collecting, check the file, and start again"


def new_id() -> str:
    """Return a UUIDv7 (RFC 9562, section 5.7): it sorts by time and is unique."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def now() -> str:
    """Return the time in UTC to the millisecond, as events store it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def act_of(event: Event) -> bytes:
    """Return a digest of what the event does, without its times and origin."""
    act: dict[str, Any] = {name: getattr(event, name) for name in _ACT}
    act["repeat"] = event.repeat_of is not None
    return hashlib.sha256(orjson.dumps(act, option=orjson.OPT_SORT_KEYS)).digest()


def read_events(
    path: Path | str, *, on_problem: Callable[[str], None] | None = None
) -> list[Event]:
    """Read the events of a file, oldest first; an event stored twice counts once.

    A truncated last line is reported to `on_problem` and skipped; a bad line elsewhere raises
    DataError.
    """
    return list(iter_events(Path(path), on_problem=on_problem))


def iter_events(path: Path, *, on_problem: Callable[[str], None] | None = None) -> Iterator[Event]:
    """Yield the events of `read_events` one by one."""
    seen: set[str] = set()
    for _, event in _lines_and_events(path, on_problem):
        if event.id not in seen:
            seen.add(event.id)
            yield event


def holds_events(path: Path) -> bool:
    """Return whether the first line of the file is an event."""
    try:
        with path.open("rb") as file:
            value = decode(file.readline(MAX_LINE))
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(path)) from None
    except RowError:
        return False
    return isinstance(value, dict) and value.get("kind") == "event"


def _refuse_other_files(path: Path) -> None:
    """Refuse a file that is not an event file, before it is locked, healed or appended to.

    The first line decides. A file without a complete line is accepted if it could be the beginning
    of an event: `_heal` moves such a line aside.
    """
    if not os.path.isfile(path):
        return
    try:
        with path.open("rb") as file:
            first = file.readline(MAX_LINE)
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(path)) from None
    begun = first[:20].lstrip(b"\0 \t\r\n")
    of_events = _is_event(first) or (
        not first.endswith(b"\n") and (BEGINNING.startswith(begun) or begun.startswith(b'{"v":'))
    )
    if not of_events and first.strip():
        raise DataError(
            "not an event file; nothing was added to it",
            where=str(path),
            hint="Name a new file, or the event file to resume",
        )


BEGINNING = b'{"v":1,"kind":"event"'


def live(events: Iterable[Event]) -> list[Event]:
    """Return the acts that stand: neither superseded nor an undo."""
    acts = standing((event.id, event.supersedes, event) for event in events)
    return [event for event in acts if event.action != "undo"]


def rankings_from_events(
    events: Iterable[Event], candidates: Iterable[Candidates] | None = None
) -> list[Ranking]:
    """Return the standing votes as rankings, without skips, flags, repeats and undone votes.

    Texts come from the event itself or, if it has none, from `candidates`. The last vote of an
    annotator on an item counts.
    """
    texts = {record.id: (record.prompt, record.candidates) for record in candidates or ()}
    return rankings_from_votes(events, texts)


def _lines_and_events(
    path: Path, on_problem: Callable[[str], None] | None
) -> Iterator[tuple[bytes, Event]]:
    def report(problem: Problem) -> None:
        if problem.kind == "torn" and on_problem:
            on_problem(f"{problem.where}: the last line is cut short; skipped")
        elif problem.level == "error" and problem.kind != "empty":
            raise problem.error()

    try:
        with path.open("rb") as file:
            for row in read_jsonl(str(path), file, report):
                assert row.raw is not None  # read_jsonl always keeps it
                yield row.raw.rstrip(b"\n"), _event(row.value, f"{path}:{row.line}")
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(path)) from None


def _event(value: object, where: str) -> Event:
    try:
        return validated(Event, value)
    except RowError as error:
        raise DataError(f"not an event: {error.message}", where=where) from None


def _is_event(line: bytes) -> bool:
    try:
        validated(Event, decode(line))
    except RowError:
        return False
    return True


def _torn_tail(path: Path) -> bytes:
    """Return the bytes after the last newline, reading backwards as the file may be large."""
    with path.open("rb") as file:
        end = position = file.seek(0, os.SEEK_END)
        tail = b""
        while position > 0:
            step = min(position, 1 << 16)
            position -= step
            file.seek(position)
            tail = file.read(step) + tail
            newline = tail.rfind(b"\n")
            if newline >= 0:
                return tail[newline + 1 :]
            if end - position > MAX_LINE:
                raise DataError(
                    "the last line is too long; is this an event file?", where=str(path)
                )
    return tail


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""Chat templates rendered where they can do no harm, at every render: a process that lives long.

Templates come with models and are programs. The sandbox that renders them keeps them from files
and code, not from looping for ever or building a text of a gigabyte, and one that behaves on an
example may not on the data. So all are rendered by one process of limited time and memory
(`template_worker.py`), which is asked through a pipe: about 0.1 ms a conversation.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from alignkit.errors import DataError, ModelError

WORKER: Final = Path(__file__).with_name("template_worker.py")
CPU_SECONDS = 5  # as in the worker, which imports nothing of ours
WALL_SECONDS = 120.0  # a machine may be busy: what counts is the worker's own time
MOST_REPLIED = 1 << 30
HINT = "Give another one with chat_template"
LIMITS = {
    "time": f"the chat template takes more than {CPU_SECONDS} seconds for one conversation",
    "memory": "the chat template takes more than 1 GiB for one conversation",
    "length": "the chat template makes a text many times as long as the conversation",
}
# SIGKILL, SIGXCPU and SIGPROF: what the kernel ends a process with that took too long.
SIGNALS_OF_TIME = (-9, -24, -27)


class TemplateRefusal(DataError):
    """A template does not take these turns; whoever asked says which.

    `deliberate`: it said so itself, by `raise_exception`; else it failed.
    """

    def __init__(self, message: str, *, deliberate: bool) -> None:
        super().__init__(message)
        self.deliberate = deliberate


class Renderer:
    """Asks the worker, and starts it when there is none. Safe to use from several threads."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._sent: set[str] = set()
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def render(self, template: str, jobs: Sequence[str], day: date | None = None) -> list[str]:
        """One text for each job, a JSON object of the template's variables.

        `day` is the date that templates are told where `dated` says none.

        Raises ModelError for a template that goes beyond the limits of time, memory or length, and
        TemplateRefusal for one that raises.
        """
        key = _key(template)
        with self._lock:
            self._start()
            text = None if key in self._sent else template
            head = json.dumps(
                {"template": key, "text": text, "date": rendering_date(day).isoformat()}
            )
            reply = self._ask(f'{head[:-1]}, "jobs": [{", ".join(jobs)}]}}'.encode())
            self._sent.add(key)
        if "limit" in reply:
            raise ModelError(LIMITS[reply["limit"]], hint=HINT)
        if "texts" not in reply:
            deliberate = "refused" in reply
            reason = reply["refused" if deliberate else "failed"]
            raise TemplateRefusal(str(reason), deliberate=deliberate)
        texts: list[str] = reply["texts"]
        return texts

    def close(self) -> None:
        """End the worker; the next render starts another."""
        process, self._process = self._process, None
        self._sent.clear()
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        if self._owner == os.getpid():
            process.kill()
            process.wait()

    def _start(self) -> None:
        if self._owner != os.getpid():
            # A forked process shares the pipes of its parent, whose replies it must not take.
            self.close()
            self._owner = os.getpid()
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )

    def _ask(self, request: bytes) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            _write(self._process.stdin, len(request).to_bytes(4) + request)
            size = int.from_bytes(self._read(4))
            if size > MOST_REPLIED:
                raise _Gone
            reply: dict[str, Any] = json.loads(self._read(size))
        except (_Gone, BrokenPipeError):
            raise ModelError(self._how_it_ended(), hint=HINT) from None
        except BaseException:
            self.close()  # half a reply in the pipe would be taken for the next one
            raise
        return reply

    def _read(self, size: int) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        stream, parts, deadline = self._process.stdout, bytearray(), time.monotonic() + WALL_SECONDS
        while len(parts) < size:
            ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
            part = stream.read(min(size - len(parts), 1 << 20)) if ready else b""
            if not part:
                raise _Gone
            parts += part
        return bytes(parts)

    def _how_it_ended(self) -> str:
        """Why the worker is gone, or still busy, in words; it is ended."""
        assert self._process is not None
        process = self._process
        try:
            code = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            code = SIGNALS_OF_TIME[0]
        self.close()
        return LIMITS["time" if code in SIGNALS_OF_TIME else "memory"]


@lru_cache(maxsize=16)
def _key(template: str) -> str:
    return hashlib.sha256(template.encode(errors="surrogatepass")).hexdigest()


class _Gone(Exception):
    """The worker ended, or takes too long."""


def _write(stream: Any, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[stream.write(view) :]


RENDERER = Renderer()
atexit.register(RENDERER.close)


# --- the date ----------------------------------------------------------------------------------

_date: ContextVar[date | None] = ContextVar("rendering date", default=None)


@contextmanager
def dated(day: date | None) -> Iterator[None]:
    """Templates that write today's date write this one inside; None leaves it as it is."""
    token = _date.set(day or _date.get())
    try:
        yield
    finally:
        _date.reset(token)


def rendering_date(usual: date | None = None) -> datetime:
    """Midnight of the day that templates are told.

    In this order: the one of `dated`, `usual`, that of SOURCE_DATE_EPOCH, today.

    SOURCE_DATE_EPOCH is the convention of https://reproducible-builds.org/specs/source-date-epoch/.
    """
    day = _date.get() or usual or _build_date() or date.today()
    return datetime(day.year, day.month, day.day)


def _build_date() -> date | None:
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(epoch), UTC).date() if epoch.isdigit() else None


def job(messages: Iterable[str], variables: str, *, add_generation_prompt: bool) -> str:
    """A job for `Renderer.render`, of messages and further variables that are JSON already."""
    prompt = "true" if add_generation_prompt else "false"
    rest = f", {variables[1:-1]}" if variables != "{}" else ""
    return f'{{"messages": [{", ".join(messages)}], "add_generation_prompt": {prompt}{rest}}}'

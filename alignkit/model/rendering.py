"""Render chat templates in one long-lived process, where they can do no harm.

Templates come with models and are programs. Their sandbox keeps them from files and code, but not
from looping forever or building a text of a gigabyte; and a template that behaves on an example may
not on the data. So every render happens in a process of limited time and memory
(`template_worker.py`), reached through a pipe at about 0.1 ms per conversation.
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
WALL_SECONDS = 120.0  # far more, because the machine may be busy; the worker counts its own time
LARGEST_RESPONSE = 1 << 30
HINT = "Give another one with chat_template"
LIMITS = {
    "time": f"the chat template takes more than {CPU_SECONDS} seconds for one conversation",
    "memory": "the chat template takes more than 1 GiB for one conversation",
    "length": "the chat template makes a text many times as long as the conversation",
}
# SIGKILL, SIGXCPU and SIGPROF: signals by which the kernel ends a process that took too long.
SIGNALS_OF_TIME = (-9, -24, -27)


class TemplateRefusal(DataError):
    """A template does not accept these turns; the caller adds which.

    `deliberate`: the template refused by `raise_exception`; otherwise it failed.
    """

    def __init__(self, message: str, *, deliberate: bool) -> None:
        super().__init__(message)
        self.deliberate = deliberate


class Renderer:
    """Sends renders to the worker, and starts it when there is none; safe to use from threads."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._sent: set[str] = set()
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def render(self, template: str, jobs: Sequence[str], day: date | None = None) -> list[str]:
        """Return one text per job, each a JSON object of the template's variables.

        `day` is the date for templates when `dated` sets none. Raise ModelError for a template that
        exceeds the limits of time, memory or length, and TemplateRefusal for one that raises.
        """
        key = _key(template)
        with self._lock:
            self._start()
            text = None if key in self._sent else template
            head = json.dumps(
                {"template": key, "text": text, "date": rendering_date(day).isoformat()}
            )
            # Jobs are JSON already; joining texts saves parsing and writing every conversation.
            response = self._request(f'{head[:-1]}, "jobs": [{", ".join(jobs)}]}}'.encode())
            self._sent.add(key)
        if "limit" in response:
            raise ModelError(LIMITS[response["limit"]], hint=HINT)
        if "texts" not in response:
            deliberate = "refused" in response
            reason = response["refused" if deliberate else "failed"]
            raise TemplateRefusal(str(reason), deliberate=deliberate)
        texts: list[str] = response["texts"]
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
            # A forked process shares its parent's pipes, and must not read the parent's responses.
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

    def _request(self, request: bytes) -> dict[str, Any]:
        """Send a request and return the response."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            _write(self._process.stdin, len(request).to_bytes(4) + request)
            size = int.from_bytes(self._read(4))
            if size > LARGEST_RESPONSE:
                raise _Gone
            response: dict[str, Any] = json.loads(self._read(size))
        except (_Gone, BrokenPipeError):
            raise ModelError(self._reason_of_end(), hint=HINT) from None
        except BaseException:
            self.close()  # half a response left in the pipe would be read as the next one
            raise
        return response

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

    def _reason_of_end(self) -> str:
        """End the worker and return which limit it exceeded."""
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
    """The worker has ended, or takes too long."""


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
    """Give templates this date as today's inside; None changes nothing."""
    token = _date.set(day or _date.get())
    try:
        yield
    finally:
        _date.reset(token)


def rendering_date(usual: date | None = None) -> datetime:
    """Return midnight of the day that templates get as today.

    In this order: the day of `dated`, `usual`, the day of SOURCE_DATE_EPOCH, today.
    SOURCE_DATE_EPOCH is the convention of https://reproducible-builds.org/specs/source-date-epoch/.
    """
    day = _date.get() or usual or _build_date() or date.today()
    return datetime(day.year, day.month, day.day)


def _build_date() -> date | None:
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(epoch), UTC).date() if epoch.isdigit() else None


def job(messages: Iterable[str], variables: str, *, add_generation_prompt: bool) -> str:
    """Return a job for `Renderer.render`; messages and variables are JSON already."""
    prompt = "true" if add_generation_prompt else "false"
    rest = f", {variables[1:-1]}" if variables != "{}" else ""
    return f'{{"messages": [{", ".join(messages)}], "add_generation_prompt": {prompt}{rest}}}'

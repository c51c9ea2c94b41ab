"""Call services over HTTP: judges, rewards, rollouts, paraphrases.

A service may be slow, busy, broken or hostile. Its answer is bounded in size (decompressed), in
depth, and in time from the first packet to the last byte, however slowly bytes drip; Ctrl-C ends a
call at once. Requests to come back later, broken connections and silence are retried.
"""

from __future__ import annotations

import asyncio
import random
import threading
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self, TypeVar
from urllib.parse import SplitResult, urlsplit

import httpx
import orjson

from alignkit.errors import AlignkitError, RecipeError, TrainingFailed
from alignkit.files.json_text import decode
from alignkit.files.problems import RowError

T = TypeVar("T")

# Statuses that a retry may not meet again.
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
LONGEST_PAUSE = 60.0  # a service that asks for a longer pause is given up
# Two tries at most may time out in silence: more would not help an overloaded service.
MOST_SILENCES = 2
LARGEST_REFUSAL = 1 << 16  # how many bytes of an error answer are read


@dataclass(frozen=True)
class Limits:
    """Limits of one call: `seconds` per try as a whole, `size` in bytes of its answer."""

    seconds: float = 120.0
    size: int = 64 << 20
    tries: int = 5
    first_pause: float = 0.5


class ServiceFailed(AlignkitError):
    """The service gave no usable answer; `reason` explains why without naming the service.

    `passing` tells that it was tried several times, and that it may answer at another time.
    """

    def __init__(self, message: str, *, reason: str, status: int | None, passing: bool) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status
        self.passing = passing


class Trouble(Exception):
    """One failed try; `again` allows a retry, `pause` is the wait that the service asks for."""

    def __init__(
        self,
        reason: str,
        *,
        again: bool,
        pause: float = 0.0,
        status: int | None = None,
        silent: bool = False,
    ) -> None:
        super().__init__(reason)
        self.again = again
        self.pause = pause
        self.status = status
        self.silent = silent


def check_address(url: str, *, what: str, example: str) -> SplitResult:
    """Return the parts of an http address; RecipeError if it cannot be one."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises beyond 65535
        httpx.URL(url).raw_host.decode("ascii").encode("idna")  # as connecting will do
    except (ValueError, httpx.InvalidURL) as error:
        raise RecipeError(
            f"{what} {url!r} is not an http address ({error})", hint=f"such as {example}"
        ) from None
    if not is_address:
        raise RecipeError(f"{what} {url!r} is not an http address", hint=f"such as {example}")
    return parts


def json_of(answer: bytes) -> Any:
    """Decode a JSON answer; Trouble at anything else and at deep nesting."""
    try:
        return decode(answer)
    except RowError as error:
        start = answer[:80].decode("utf-8", "replace")
        reason = error.message.replace("the line", "it")
        raise Trouble(f"did not answer in JSON: {start!r} ({reason})", again=False) from None


def text_of(answer: bytes) -> str:
    """Decode an answer as text, whatever its bytes are."""
    return answer.decode("utf-8", "replace")


class Service:
    """Calls a service at `url`; a context manager, or `close` it. Threads may share it.

    `what` names the service in errors; `key` is sent as a bearer token. Pauses between tries end
    early when `stop` is set.
    """

    def __init__(
        self,
        url: str,
        *,
        what: str,
        key: str | None = None,
        limits: Limits | None = None,
        connections: int = 1,
        stop: threading.Event | None = None,
    ) -> None:
        self.url, self.what = url, what
        self.limits = limits or Limits()
        self._stop = stop or threading.Event()
        # Calls run as tasks of an event loop: a task can be stopped at any byte, a thread cannot.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._starting = threading.Lock()
        self._calls: set[asyncio.Task[Any]] = set()
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=None,  # noqa: S113  one limit covers each whole try, in _exchange
            limits=httpx.Limits(max_connections=connections),
            # Reading the certificates of all authorities takes 20 ms, which http can save.
            verify=url.startswith("https:"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        read: Callable[[bytes], T],
        on_retry: Callable[[], None] | None = None,
    ) -> T:
        """POST JSON and return what `read` makes of the answer. Raises ServiceFailed.

        `read` may raise Trouble, and tell whether a retry can help.
        """
        content = orjson.dumps(body)
        pause = self.limits.first_pause
        silences = 0
        for tried in range(1, self.limits.tries + 1):
            try:
                return read(self._try(self.url + path, content))
            except Trouble as trouble:
                silences += trouble.silent
                over = tried == self.limits.tries or silences == MOST_SILENCES
                if not trouble.again or over or self._stop.is_set():
                    raise self._failed(trouble, path, tried) from None
                if on_retry:
                    on_retry()
                # Half of each pause is random, so that clients do not return all at once.
                self._stop.wait(max(trouble.pause, pause * random.uniform(0.5, 1.0)))
                pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError("unreachable: the last try returns or raises")

    def cancel(self) -> None:
        """Stop every running call; its thread sees it fail."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end_calls(), self._loop)

    def close(self) -> None:
        """Stop every call and release the connections; safe to call twice."""
        if self._loop.is_closed():
            return
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    async def _end_calls(self) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _end(self) -> None:
        await self._end_calls()
        await self._client.aclose()
        await self._loop.shutdown_asyncgens()

    def _failed(self, trouble: Trouble, path: str, tried: int) -> ServiceFailed:
        reason = f"gave no answer in {tried} tries ({trouble})" if trouble.again else str(trouble)
        return ServiceFailed(
            f"{self.what} {self.url}{path} {reason}",
            reason=str(trouble),
            status=trouble.status,
            passing=trouble.again,
        )

    def _try(self, url: str, content: bytes) -> bytes:
        if self._stop.is_set():
            raise Trouble("was cancelled", again=False)
        with self._starting:
            if self._thread.ident is None:
                self._thread.start()
        call = asyncio.run_coroutine_threadsafe(self._exchange(url, content), self._loop)
        try:
            return call.result()
        except CancelledError:
            raise Trouble("was cancelled", again=False) from None
        except BaseException:
            call.cancel()  # Ctrl-C while waiting: the connection must not keep dripping
            raise

    async def _exchange(self, url: str, content: bytes) -> bytes:
        """Make one try and return the body of an answer that is not an error."""
        seconds = self.limits.seconds
        answering = False
        call = asyncio.current_task()
        assert call is not None  # a coroutine runs in one
        self._calls.add(call)
        try:
            async with (
                asyncio.timeout(seconds),
                self._client.stream("POST", url, content=content) as answer,
            ):
                answering = True
                body = await self._body(answer)
        except TimeoutError:
            if answering:
                raise Trouble(f"was still answering after {seconds:g} s", again=False) from None
            raise Trouble(f"no answer in {seconds:g} s", again=True, silent=True) from None
        except httpx.HTTPError as error:
            raise Trouble(f"{type(error).__name__}: {error}", again=True) from None
        finally:
            self._calls.discard(call)
            self._client.cookies.clear()  # no request may carry what an earlier answer set
        if answer.status_code >= 300:
            raise _refusal(answer, body)
        return body

    async def _body(self, answer: httpx.Response) -> bytes:
        failed = answer.status_code >= 300
        limit = LARGEST_REFUSAL if failed else self.limits.size
        unpack = _unpacking(answer.headers.get("Content-Encoding", ""))
        body, received = bytearray(), 0
        async for part in answer.aiter_raw():
            received += len(part)
            body += unpack.some(part, limit + 1 - len(body))
            # Compressed bytes count too: a gzip header can continue forever and unpack to nothing.
            if max(len(body), received) > limit:
                if failed:
                    break
                raise Trouble(f"answered with more than {limit / 2**20:g} MiB", again=False)
        else:
            unpack.check_end()
        return bytes(body[:limit])


def post_json(
    url: str,
    body: Mapping[str, Any],
    *,
    what: str,
    timeout: float,
    key: str | None = None,
    where: str | None = None,
    wait: float = 0.5,
    as_json: bool = True,
) -> Any:
    """POST once to a server a run depends on; its JSON answer, or its text.

    Raises TrainingFailed naming `what` and the address.

    `timeout` is for one try as a whole, in seconds; `wait` is the first pause between tries.
    """
    limits = Limits(seconds=timeout, first_pause=wait)
    with Service(url, what=what, key=key, limits=limits) as service:
        try:
            return service.post("", body, read=json_of if as_json else text_of)
        except ServiceFailed as error:
            raise TrainingFailed(
                error.message, where=where, hint=AGAIN if error.passing else None
            ) from None


AGAIN = "check the service, then run the same command again: it goes on from the last checkpoint"


class _Plain:
    """Passes on bytes that are not compressed."""

    def some(self, part: bytes, _most: int) -> bytes:
        return part

    def check_end(self) -> None:
        """Do nothing: plain bytes have no end mark that could be missing."""


class _Deflated:
    """Unpacks gzip and deflate, no further than asked: a kilobyte may expand to a megabyte."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    def some(self, part: bytes, most: int) -> bytes:
        """Return at most `most` bytes, which is above 0, of what the part unpacks to."""
        try:
            return self._stream.decompress(part, most)
        except zlib.error as error:
            raise Trouble(f"broken compression: {error}", again=True) from None

    def check_end(self) -> None:
        """Refuse an answer that was cut off."""
        if not self._stream.eof:
            raise Trouble("the compressed answer ends too early", again=True)


def _unpacking(encoding: str) -> _Plain | _Deflated:
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return _Plain()
    if name in ("gzip", "x-gzip", "deflate"):
        return _Deflated()
    # Several encodings on top of each other, each of which multiplies, are refused too.
    raise Trouble(f"compressed its answer ({name[:40]}) without being asked", again=False)


def _refusal(answer: httpx.Response, body: bytes) -> Trouble:
    """Explain an unsuccessful answer; redirects are not followed.

    A redirected POST may become a GET, and the key is meant for this address only.
    """
    status = answer.status_code
    target = answer.headers.get("Location")
    if target and status < 400:
        reason = f"answered HTTP {status}, which points to {target[:200]}"
        return Trouble(reason, again=False, status=status)
    text = " ".join(text_of(body).split())[:200]
    pause = seconds_until(answer.headers.get("Retry-After"))
    if status not in PASSING:
        reason = f"answered HTTP {status}{f': {text}' if text else ''}"
        return Trouble(reason, again=False, status=status)
    if pause > LONGEST_PAUSE:
        reason = f"answered HTTP {status} and asks to come back in {pause:.0f} s"
        return Trouble(reason, again=False, status=status)
    return Trouble(f"HTTP {status}", again=True, pause=pause, status=status)


def seconds_until(header: str | None) -> float:
    """Return a Retry-After in seconds from now (RFC 9110, section 10.2.3); 0 if unusable."""
    if not header:
        return 0.0
    if header.strip().isascii() and header.strip().isdigit():
        return float(header.strip()[:12])
    try:
        then = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return 0.0
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, then.timestamp() - datetime.now(UTC).timestamp())

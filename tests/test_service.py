"""Hostile services on loopback: whatever they answer is bounded in size, depth and time."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from typing import Any

import pytest

from alignkit.data.edit.augment import paraphrased
from alignkit.data.records import Demonstration, Message
from alignkit.errors import DataError, TrainingFailed
from alignkit.judges import Comparison
from alignkit.judges.llm import LlmJudge, LlmSettings
from alignkit.service import (
    LONGEST_PAUSE,
    PASSING,
    Limits,
    Service,
    ServiceFailed,
    json_of,
    post_json,
    seconds_until,
)

Behaviour = Callable[[socket.socket], None]
QUICK = Limits(seconds=1.0, size=1 << 20, tries=3, first_pause=0.01)


class Hostile:
    """A server that reads a request and then does what it likes with the connection."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.requests: list[bytes] = []
        self.stop = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.threads: list[threading.Thread] = []

    def run(self) -> None:
        while not self.stop.is_set():
            with suppress(OSError):
                wire, _ = self.listener.accept()
                thread = threading.Thread(target=self.serve, args=(wire,))
                thread.start()
                self.threads.append(thread)

    def serve(self, wire: socket.socket) -> None:
        with wire, suppress(OSError):
            wire.settimeout(5)
            request = b""
            while b"\r\n\r\n" not in request:
                part = wire.recv(1 << 16)
                if not part:
                    return
                request += part
            head, _, body = request.partition(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].split()[0])
            while len(body) < size:
                body += wire.recv(1 << 16)
            self.requests.append(head + b"\r\n\r\n" + body)
            self.behave(wire)


@contextmanager
def hostile(behave: Behaviour) -> Iterator[Hostile]:
    server = Hostile(behave)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        with suppress(OSError), socket.create_connection(server.listener.getsockname()):
            pass
        thread.join()
        server.listener.close()
        for each in server.threads:
            each.join(10)
            assert not each.is_alive()


def head(status: int = 200, **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status} Said"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def says(body: bytes, status: int = 200, **headers: object) -> Behaviour:
    return lambda wire: wire.sendall(head(status, Content_Length=len(body), **headers) + body)


def in_turn(*behaviours: Behaviour) -> Behaviour:
    left = iter(behaviours)
    return lambda wire: next(left)(wire)


def endless(wire: socket.socket) -> None:
    wire.sendall(head(Content_Length=1 << 40))
    while True:
        wire.sendall(b" " * (1 << 16))


def endless_chunks(wire: socket.socket) -> None:
    wire.sendall(head(Transfer_Encoding="chunked"))
    while True:
        wire.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


def drip(wire: socket.socket) -> None:
    wire.sendall(head(Content_Length=1000))
    while True:
        wire.sendall(b" ")
        time.sleep(0.02)


def drip_headers(wire: socket.socket) -> None:
    wire.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        wire.sendall(b"x")
        time.sleep(0.02)


def endless_headers(wire: socket.socket) -> None:
    wire.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in itertools.count():
        wire.sendall(b"x-%d: %s\r\n" % (number, b"y" * 1000))


def endless_informations(wire: socket.socket) -> None:
    while True:
        wire.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)
        time.sleep(0.01)


def silence(wire: socket.socket) -> None:
    wire.recv(1)


@cache
def squeezed() -> bytes:
    """256 MiB in a quarter of one."""
    packer = zlib.compressobj(6, wbits=31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()


def bomb(wire: socket.socket) -> None:
    says(squeezed(), Content_Encoding="gzip")(wire)


def endless_gzip_header(wire: socket.socket) -> None:
    wire.sendall(head(Content_Encoding="gzip") + b"\x1f\x8b\x08\x08" + bytes(6))
    while True:
        wire.sendall(b"n" * (1 << 16))  # the name of the file, which never ends


def ask(server: Hostile, limits: Limits = QUICK, **options: Any) -> Any:
    with Service(server.url, what="reward_url", limits=limits, **options) as service:
        return service.post("/score", {"a": 1}, read=json_of)


@pytest.mark.parametrize(
    ("behave", "reason", "requests"),
    [
        (endless, "answered with more than 1 MiB", 1),
        (endless_chunks, "answered with more than 1 MiB", 1),
        (bomb, "answered with more than 1 MiB", 1),
        (endless_gzip_header, "answered with more than 1 MiB", 1),
        (drip, "was still answering after 1 s", 1),
        (drip_headers, "gave no answer in 2 tries (no answer in 1 s)", 2),
        (endless_headers, "gave no answer in 3 tries (RemoteProtocolError", 3),
        (endless_informations, "gave no answer in 2 tries (no answer in 1 s)", 2),
        (silence, "gave no answer in 2 tries (no answer in 1 s)", 2),
        (says(b"[" * 100_000 + b"]" * 100_000), "did not answer in JSON", 1),
        (says(b'{"a":' * 100 + b"1" + b"}" * 100), "(nested deeper than 64)", 1),
        (says(b"x" * 500), "did not answer in JSON: 'xxxx", 1),
        (says(b"{}", Content_Encoding="br"), "compressed its answer (br)", 1),
        (says(b"{}", Content_Encoding="zstd"), "compressed its answer (zstd)", 1),
        (says(b"{}", Content_Encoding="gzip, gzip"), "compressed its answer (gzip, gzip)", 1),
        (says(b"{}", Content_Encoding="gzip"), "(broken compression: ", 3),
        (says(gzip.compress(b"{}" * 99)[:-9], Content_Encoding="gzip"), "ends too early", 3),
        (says(b"", 307, Location="http://127.0.0.1:1/"), "answered HTTP 307, which points to", 1),
        (says(b"<p>no\x00such</p>" * 9, 404), "answered HTTP 404: <p>no", 1),
        (lambda wire: wire.sendall(head(404, Content_Length=1 << 40) + b"n" * (1 << 20)),
         "answered HTTP 404: nnn", 1),
        (lambda wire: wire.close(), "gave no answer in 3 tries (RemoteProtocolError", 3),
        (lambda wire: wire.sendall(b"SSH-2.0\r\n"), "gave no answer in 3 tries (RemotePro", 3),
        (lambda wire: wire.sendall(head(Content_Length=9) + b"{}"), "gave no answer in 3", 3),
    ],
)  # fmt: skip
def test_a_hostile_answer_ends_in_one_error(behave: Behaviour, reason: str, requests: int) -> None:
    squeezed()  # built beforehand: only what the client takes is measured
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with hostile(behave) as server, pytest.raises(ServiceFailed) as caught:
        ask(server)
    assert str(caught.value).startswith(f"reward_url {server.url}/score ")
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 500
    assert len(server.requests) == requests
    assert time.monotonic() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


@pytest.mark.parametrize("squeeze", [gzip.compress, zlib.compress])
def test_an_answer_that_is_compressed_all_the_same_is_read(squeeze: Any) -> None:
    encoding = "gzip" if squeeze is gzip.compress else "deflate"
    body = squeeze(json.dumps({"scores": [1.5]}).encode())
    with hostile(says(body, Content_Encoding=encoding)) as server:
        assert ask(server) == {"scores": [1.5]}
    assert b"accept-encoding: identity" in server.requests[0].lower()


@pytest.mark.parametrize("status", sorted(PASSING))
def test_statuses_that_pass_are_tried_again(status: int) -> None:
    with hostile(in_turn(says(b"", status), says(b"", status), says(b"7"))) as server:
        assert ask(server) == 7
    with hostile(says(b"", status)) as server, pytest.raises(ServiceFailed) as caught:
        ask(server)
    assert len(server.requests) == 3
    assert f"gave no answer in 3 tries (HTTP {status})" in str(caught.value)


def test_a_service_says_when_to_come_back() -> None:
    with hostile(in_turn(says(b"", 429, Retry_After="1"), says(b"7"))) as server:
        started = time.monotonic()
        assert ask(server) == 7
        assert 1 <= time.monotonic() - started < 4
    with hostile(says(b"", 503, Retry_After="86400")) as server:
        started = time.monotonic()
        with pytest.raises(ServiceFailed, match=r"HTTP 503 and asks to come back in 86400 s"):
            ask(server)
        assert time.monotonic() - started < 4
    assert len(server.requests) == 1


def test_when_to_come_back_is_read_from_seconds_and_dates() -> None:
    then = datetime.now(UTC) + timedelta(seconds=30)
    assert 25 < seconds_until(format_datetime(then, usegmt=True)) <= 30
    assert seconds_until("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert seconds_until(" 12 ") == 12
    assert seconds_until("9" * 5000) > LONGEST_PAUSE
    for nothing in (None, "", "soon", "-5", "1e9", "Wed, 99 Oct 99999 07:28:00 GMT", "٣"):
        assert seconds_until(nothing) == 0


def test_the_key_stays_with_its_address() -> None:
    with (
        hostile(says(b"{}")) as elsewhere,
        hostile(says(b"", 302, Location=elsewhere.url)) as server,
        pytest.raises(ServiceFailed, match="which points to"),
    ):
        ask(server, key="sesame")
    assert b"authorization: bearer sesame" in server.requests[0].lower()
    assert elsewhere.requests == []


def test_cookies_of_an_answer_do_not_come_back() -> None:
    with (
        hostile(says(b"1", Set_Cookie="a=b")) as server,
        Service(server.url, what="judge", limits=QUICK) as service,
    ):
        assert [service.post("", {}, read=json_of) for _ in range(2)] == [1, 1]
    assert all(b"cookie" not in request.lower() for request in server.requests)


def test_calls_work_where_an_event_loop_runs_already() -> None:
    async def notebook(server: Hostile) -> Any:
        return ask(server)

    with hostile(says(b"7")) as server:
        assert asyncio.run(notebook(server)) == 7


def test_an_address_with_nobody_behind_it_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    refused = pytest.raises(ServiceFailed, match=r"gave no answer in 3 tries \(ConnectError")
    with Service(url, what="judge", limits=QUICK) as service, refused:
        service.post("", {}, read=json_of)


def test_closing_ends_calls_of_other_threads() -> None:
    found: list[ServiceFailed] = []

    def call() -> None:
        try:
            service.post("", {}, read=json_of)
        except ServiceFailed as error:
            found.append(error)

    with hostile(drip) as server:
        service = Service(server.url, what="judge", limits=Limits(seconds=60))
        thread = threading.Thread(target=call)
        thread.start()
        while not server.requests:
            time.sleep(0.01)
        started = time.monotonic()
        service.close()
        service.close()
        thread.join(5)
    assert time.monotonic() - started < 4
    assert "was cancelled" in str(found[0])


# --- who speaks through it ------------------------------------------------------------------------


@pytest.mark.parametrize("behave", [endless, bomb, drip, says(b"[" * 5000)])
def test_a_training_ends_with_the_services_name(behave: Behaviour) -> None:
    with hostile(behave) as server, pytest.raises(TrainingFailed) as caught:
        post_json(server.url, {}, what="reward_url", timeout=1.0, where="p.jsonl:3", wait=0.01)
    assert str(caught.value).startswith(f"p.jsonl:3: reward_url {server.url} ")
    assert caught.value.exit_code == 1


def judge(url: str, **settings: Any) -> LlmJudge:
    quick = {"timeout": 1.0, "retries": 1, "first_pause": 0.01}
    return LlmJudge(LlmSettings("toy", url, **(quick | settings)))


PAIR = [Comparison([Message(role="user", content="?")], "left", "right")]


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (endless, "no reply: answered with more than 4 MiB"),
        (bomb, "no reply: answered with more than 4 MiB"),
        (drip, "no reply: was still answering after 1 s"),
        (says(b"[" * 5000), "no reply: the body is no chat completion"),
        (says(b'{"choices": [{"message": {"content": {"a": [1]}}}]}'), "parse: the reply ends"),
    ],
)
def test_a_verdict_of_a_hostile_endpoint_is_a_failed_one(behave: Behaviour, reason: str) -> None:
    with hostile(behave) as server:
        asked = judge(server.url)
        try:
            [verdict] = asked.compare_many(PAIR)
        finally:
            asked.close()
    assert verdict.score is None
    assert verdict.error is not None
    assert verdict.error.startswith(reason)


@pytest.mark.parametrize("usage", ['{"prompt_tokens": 1e300}', '{"prompt_tokens": -5}', "[]"])
def test_what_an_endpoint_says_of_tokens_is_no_fact(usage: str) -> None:
    body = f'{{"choices": [{{"message": {{"content": "[[1]]"}}}}], "usage": {usage}}}'
    with hostile(says(body.encode())) as server:
        asked = judge(server.url, price_in=1.0, price_out=1.0)
        [verdict] = asked.compare_many(PAIR)
        asked.close()
    assert verdict.score == 1.0
    assert (verdict.notes or {})["prompt_tokens"] == 0


def test_log_probabilities_of_another_shape_are_a_failed_verdict() -> None:
    body = {
        "choices": [{"message": {}, "logprobs": {"content": [{"top_logprobs": [{"token": 1}]}]}}]
    }
    with hostile(says(json.dumps(body).encode())) as server:
        asked = judge(server.url, mode="logprobs")
        [verdict] = asked.compare_many(PAIR)
        asked.close()
    assert verdict.error == "parse: the reply holds no log-probabilities"


def test_paraphrases_of_a_hostile_endpoint_are_an_error() -> None:
    turns = [Message(role="user", content="Hi"), Message(role="assistant", content="Ho")]
    with hostile(says(b"[" * 5000)) as server, pytest.raises(DataError, match="no paraphrase"):
        list(paraphrased([Demonstration(messages=turns)], endpoint=server.url, model="m", key=None))


WAITING = """
import sys
from alignkit.data.records import Message
from alignkit.judges import Comparison
from alignkit.judges.llm import LlmJudge, LlmSettings
from alignkit.service import post_json
kind, url = sys.argv[1:]
pairs = [Comparison([Message(role="user", content=str(n))], "l", "r") for n in range(20)]
print("asking", flush=True)
try:
    if kind == "judge":
        LlmJudge(LlmSettings("toy", url, timeout=300)).compare_many(pairs)
    else:
        post_json(url, {}, what="reward_url", timeout=300)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("kind", ["judge", "reward"])
@pytest.mark.parametrize("behave", [drip, drip_headers, silence, says(b"", 503, Retry_After="50")])
def test_ctrl_c_is_heard_while_a_service_drips(kind: str, behave: Behaviour) -> None:
    with hostile(behave) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", WAITING, kind, server.url],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "asking\n"
        while not server.requests:
            time.sleep(0.01)
        time.sleep(0.2)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert (process.returncode, said) == (130, "")
        assert time.monotonic() - started < 10

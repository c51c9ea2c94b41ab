"""Strangers at the page's door: hundreds of idle, slow and greedy connections keep nobody out."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from alignkit.collect.log import new_id
from alignkit.collect.session import Collection
from alignkit.collect.web.connections import Patience
from alignkit.collect.web.server import bind, create_app, server_of
from tests.collect_data import collecting, items, write

TOKENS = {"ann": "token-of-ann", "ben": "token-of-ben"}
SHORT = Patience(head=0.5, body=0.5, response=1.0, connections=40, strangers=24, of_one_address=16)


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    with collecting(tmp_path / "r.jsonl", items(40), *TOKENS) as opened:
        yield opened


@contextmanager
def serving(collection: Collection, patience: Patience | None = None) -> Iterator[str]:
    """The page's own server in a thread of its own."""
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = server_of(create_app(collection, TOKENS, port=port), patience)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def wire(origin: str, sent: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", int(origin.rpartition(":")[2])), timeout=20)
    made.sendall(sent)
    return made


def closed_after(made: socket.socket) -> float:
    """Seconds until the other side ends the connection."""
    started = time.monotonic()
    made.settimeout(20)
    with suppress(ConnectionError):
        while made.recv(1 << 16):
            pass
    return time.monotonic() - started


@contextmanager
def come_in(origin: str, name: str = "ann") -> Iterator[httpx.Client]:
    """An annotator who follows the link."""
    with httpx.Client(base_url=origin, headers={"origin": origin}, timeout=20) as client:
        assert client.get(f"/?token={TOKENS[name]}", follow_redirects=True).status_code == 200
        yield client


def vote(client: httpx.Client) -> int:
    ticket = client.get("/api/next").json()["item"]["ticket"]
    body = {"key": new_id(), "ticket": ticket, "order": "1"}
    return client.post("/api/vote", json=body).status_code


HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    "sent", [b"", b"G", HEAD, b"POST /api/vote HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"]
)
def test_hundreds_of_connections_without_a_token_keep_nobody_out(
    collection: Collection, sent: bytes
) -> None:
    """More than the server keeps at all, and nothing of its patience is over yet."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        with serving(collection) as origin:
            crowd = []
            for _ in range(700):
                with suppress(ConnectionError):
                    crowd.append(wire(origin, sent))
            with come_in(origin) as client:
                assert vote(client) == 200
                # And more of them while she is at work.
                for _ in range(300):
                    with suppress(ConnectionError):
                        crowd.append(wire(origin, sent))
                assert vote(client) == 200
            with come_in(origin, "ben") as client:
                assert vote(client) == 200
            for each in crowd:
                each.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def drip(made: socket.socket, what: bytes, stop: threading.Event) -> None:
    with suppress(OSError):
        while not stop.wait(0.05):
            made.sendall(what)


@pytest.mark.parametrize(
    ("sent", "dripped"),
    [
        (b"", b""),
        (b"", b"x"),
        (HEAD, b"x: y\r\n"),
        (HEAD + b"\r\n", b""),  # answered 421, then silent
        (HEAD + b"\r\n" + HEAD, b"x: y\r\n"),
        (b"POST /api/vote HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n", b"x"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
)
def test_who_is_slow_is_not_waited_for(collection: Collection, sent: bytes, dripped: bytes) -> None:
    stop = threading.Event()
    with serving(collection, SHORT) as origin, wire(origin, sent) as made:
        dripping = threading.Thread(target=drip, args=(made, dripped, stop))
        dripping.start()
        assert closed_after(made) < 5
        stop.set()
        dripping.join()


def cookie(origin: str) -> str:
    return f"alignkit-{origin.rpartition(':')[2]}={TOKENS['ann']}"


def test_a_body_that_drips_is_not_waited_for_with_a_token_either(collection: Collection) -> None:
    stop = threading.Event()
    with serving(collection, SHORT) as origin:
        host = origin.removeprefix("http://")
        sent = (
            f"POST /api/vote HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n"
            f"Cookie: {cookie(origin)}\r\nContent-Type: application/json\r\n"
            "Content-Length: 900\r\n\r\n"
        )
        with wire(origin, sent.encode()) as made:
            dripping = threading.Thread(target=drip, args=(made, b" ", stop))
            dripping.start()
            assert closed_after(made) < 5
            stop.set()
            dripping.join()
        with come_in(origin) as client:
            assert vote(client) == 200


def test_an_answer_that_nobody_takes_is_dropped_and_one_taken_slowly_is_not(
    tmp_path: Path,
) -> None:
    """More than the kernel's buffers hold, on its way to a reader who sleeps, or reads a bit."""
    records = items(1)
    records[0].candidates[0].messages[0].content = "long " * 3_000_000
    with collecting(tmp_path / "r.jsonl", records, *TOKENS) as collection:
        patience = Patience(head=0.5, body=0.5, response=1.5)
        with serving(collection, patience) as origin:
            host = origin.removeprefix("http://")
            ask = f"GET /api/next HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie(origin)}\r\n\r\n"
            with wire(origin, ask.encode()) as asleep, wire(origin, ask.encode()) as slow:
                got = 0
                for _ in range(40):
                    time.sleep(0.1)
                    got += len(slow.recv(1 << 18))
                while part := slow.recv(1 << 20):
                    got += len(part)
                assert got > 15_000_000
                left = 0
                with suppress(ConnectionError):
                    while part := asleep.recv(1 << 20):
                        left += len(part)
                assert left < 15_000_000


def test_strangers_of_one_address_push_each_other_out(collection: Collection) -> None:
    """The oldest of the crowd goes; a connection that showed a token stays."""
    patience = Patience(head=60, connections=40, strangers=24, of_one_address=8)
    with serving(collection, patience) as origin, come_in(origin) as client:
        other = wire_from("127.0.0.2", origin)
        crowd = [wire(origin) for _ in range(9)]
        assert closed_after(crowd[0]) < 5
        for each in (crowd[1], crowd[8], other):
            each.settimeout(0.3)
            with pytest.raises(TimeoutError):
                each.recv(1)
        assert vote(client) == 200
        for each in [*crowd, other]:
            each.close()


def wire_from(address: str, origin: str) -> socket.socket:
    port = int(origin.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), source_address=(address, 0), timeout=20)


def test_no_header_makes_an_address(collection: Collection) -> None:
    """The address of a connection is where its packets go, whatever a proxy's header claims."""
    patience = Patience(head=60, strangers=24, of_one_address=4)
    with serving(collection, patience) as origin:
        crowd = [
            wire(origin, HEAD + f"X-Forwarded-For: 10.0.0.{n}\r\n\r\n".encode()) for n in range(9)
        ]
        assert closed_after(crowd[0]) < 5
        for each in crowd:
            each.close()


# --- the door of --open ---------------------------------------------------------------------------

NOTING = """#!/bin/sh
printf '%s\\n' "$@" > "$NOTE.part"
cp "${1#file://}" "$NOTE.page" && stat -c %a "${1#file://}" > "$NOTE.mode"
mv "$NOTE.part" "$NOTE"
"""


@contextmanager
def opening(tmp_path: Path) -> Iterator[tuple[Path, str, str]]:
    """`alignkit rank --open` with a browser that notes what it was started with."""
    browser, note = tmp_path / "browser", tmp_path / "note"
    browser.write_text(NOTING)
    browser.chmod(0o755)
    candidates = write(tmp_path / "c.jsonl", items(3))
    process = subprocess.Popen(
        [sys.executable, "-m", "alignkit", "rank", candidates, "--output", tmp_path / "r.jsonl",
         "--annotator", "ann", "--annotator", "ben", "--port", "0", "--open"],
        env=os.environ | {"BROWSER": f"{browser} %s", "NOTE": str(note)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        link = process.stdout.readline().split()[1]
        while not note.exists():
            time.sleep(0.05)
        yield note, link, note.with_suffix(".page").read_text()
        door = Path(note.read_text().strip().removeprefix("file://"))
        assert stat.S_IMODE(door.parent.stat().st_mode) == 0o700
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert not door.parent.exists()


def test_no_token_stands_in_what_the_browser_was_started_with(tmp_path: Path) -> None:
    with opening(tmp_path) as (note, link, page):
        words = note.read_text()
        assert words.startswith("file:///")
        assert "token" not in words and "code" not in words
        assert note.with_suffix(".mode").read_text() == "600\n"
        token = link.partition("token=")[2]
        assert token not in page
        address = re.search(r"url=(\S+)\"", page)
        assert address is not None
        with httpx.Client() as client:
            first = client.get(address[1])
            assert (first.status_code, first.headers["refresh"]) == (200, "0; url=/")
            assert client.get(link.partition("?")[0]).status_code == 200
        # It opens once: whoever finds it later finds nothing.
        assert httpx.get(address[1]).status_code == 403
        assert httpx.get(address[1][:-1] + "x").status_code == 403
        assert httpx.get(link).status_code == 303


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_the_door_leads_a_browser_to_the_page(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    from benchmarks.rank_latency import CHROMIUM_ARGUMENTS

    with opening(tmp_path) as (note, link, _page), sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=CHROMIUM_ARGUMENTS
        )
        page = browser.new_page()
        page.goto(note.read_text().strip())
        page.locator("h1", has_text="Item 1:").wait_for()
        assert page.locator("#annotator").inner_text() == "ann"
        assert page.url == link.partition("?")[0]
        page.go_back()  # neither the code nor its page is in the way back
        assert "code" not in page.url
        browser.close()

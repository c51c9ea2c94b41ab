"""The page's server: what it stores, and what nonsense does to it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignkit.collect.log import EventLog, new_id, read_events
from alignkit.collect.session import Collection
from alignkit.collect.web.guard import CSP
from alignkit.collect.web.server import FILES, bind, create_app, server_of
from alignkit.errors import DiskFull, UserError
from tests.collect_data import XSS, Browser, Reply, collecting, item, items, lines

PORT = 8765
ORIGIN = f"http://127.0.0.1:{PORT}"
TOKENS = {"ann": "token-of-ann", "ben": "token-of-ben"}


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    records = [item(0, [*XSS], prompt=XSS[0]), *items(30)[1:]]
    with collecting(tmp_path / "r.jsonl", records, *TOKENS) as opened:
        yield opened


def client_of(collection: Collection, name: str = "ann") -> Browser:
    """A browser that opened this annotator's link."""
    client = Browser(create_app(collection, TOKENS, port=PORT), ORIGIN)
    assert client.open(TOKENS[name]).status == 303
    return client


@pytest.fixture
def client(collection: Collection) -> Browser:
    return client_of(collection)


def vote_on(client: Browser, order: str = "1>2", **fields: Any) -> Reply:
    ticket = client.get("/api/next").json()["item"]["ticket"]
    return client.post("/api/vote", {"key": new_id(), "ticket": ticket, "order": order} | fields)


# ------------------------------------------------------------------------------ what it is for


def test_a_vote_is_on_the_disk_when_the_page_hears_saved(
    collection: Collection, client: Browser
) -> None:
    response = vote_on(client, "2>1=3", strength=3, comment="clear", active_ms=900, wall_ms=1200)
    body = response.json()
    event = read_events(collection.log.path)[0]
    assert body["saved"]["id"] == event.id and body["saved"]["stored"] == "saved"
    assert sorted(body["saved"]["characters"]) == sorted(map(len, XSS))
    assert sorted((event.ranks or {}).values()) == [1, 2, 2]
    assert (event.strength, event.comment, event.active_ms, event.ui) == (3, "clear", 900, "web")
    assert body["progress"] == {"done": 1, "total": 30, "mine": 1}
    assert body["undo"] == event.id


def test_two_tabs_a_double_click_and_a_retry_store_one_vote(
    collection: Collection, client: Browser
) -> None:
    ticket = client.get("/api/next").json()["item"]["ticket"]
    body = {"key": new_id(), "ticket": ticket, "order": "1>2>3"}
    answers = [client.post("/api/vote", body) for _ in range(3)]
    assert [a.json()["saved"]["stored"] for a in answers] == ["saved", "duplicate", "duplicate"]
    other_tab = client.post("/api/vote", body | {"key": new_id(), "order": "3>2>1"})
    assert other_tab.status == 409 and "already done" in other_tab.json()["error"]
    changed = client.post("/api/vote", body | {"order": "3>2>1"})
    assert changed.status == 409
    assert len(lines(collection.log.path)) == 1


def test_undo_goes_through_the_page(collection: Collection, client: Browser) -> None:
    saved = vote_on(client, "1>2>3", comment="x").json()
    undo = {"key": new_id(), "target": saved["undo"]}
    body = client.post("/api/undo", undo).json()
    assert body["undone"] == saved["undo"] and body["previous"]["comment"] == "x"
    assert client.post("/api/undo", undo | {"key": new_id()}).status == 200
    assert client.post("/api/undo", {"key": new_id(), "target": "x"}).json()["undone"] is None
    assert [row["action"] for row in lines(collection.log.path)] == ["rank", "undo"]


def test_no_annotator_sees_or_touches_what_another_did(collection: Collection) -> None:
    ann, ben = client_of(collection, "ann"), client_of(collection, "ben")
    saved = vote_on(ann, "1>2>3", comment="only mine").json()
    ticket = ann.get("/api/next").json()["item"]["ticket"]
    seen = ben.get("/api/next").text
    assert "only mine" not in seen and json.loads(seen)["progress"]["mine"] == 0
    assert (
        ben.post("/api/undo", {"key": new_id(), "target": saved["undo"]}).json()["undone"] is None
    )
    stolen = ben.post("/api/vote", {"key": new_id(), "ticket": ticket, "order": "1"})
    assert stolen.status == 400
    assert len(lines(collection.log.path)) == 1


def test_a_full_disk_is_told_and_the_same_vote_can_be_sent_again(
    collection: Collection, client: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: EventLog, line: bytes) -> None:
        raise DiskFull("no space left")

    body = {
        "key": new_id(),
        "ticket": client.get("/api/next").json()["item"]["ticket"],
        "order": "1>2>3",
    }
    with monkeypatch.context() as patch:
        patch.setattr(EventLog, "_write", full)
        refused = client.post("/api/vote", body)
    assert refused.status == 507 and "no space left" in refused.json()["error"]
    assert lines(collection.log.path) == []
    assert client.post("/api/vote", body).json()["saved"]["stored"] == "saved"


# ------------------------------------------------- nonsense; threats are in test_security


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b"1", b"NaN", b'"x"', b"\xff", b"[" * 50_000, b'{"key":"\\ud800"}',
    b'{"key":%s}' % (b"9" * 5000), b'{"key":1,"ticket":"x"}', b'{"key":"","ticket":"","who":"me"}',
    b'{"key":"k","ticket":"x","all_bad":1}', b'{"key":"k","ticket":"x","action":"undo"}',
])  # fmt: skip
def test_a_malformed_body_is_a_400(collection: Collection, client: Browser, body: bytes) -> None:
    for path in ("/api/vote", "/api/undo"):
        response = client.post(path, body)
        assert response.status == 400, response.text
        assert "Traceback" not in response.text
    assert lines(collection.log.path) == []


def test_the_page_cannot_be_framed_and_the_server_does_not_introduce_itself(
    client: Browser,
) -> None:
    for path, status in [("/", 200), ("/nothing", 404), ("/api/vote", 405)]:
        response = client.get(path)
        assert response.status == status
        assert response.headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert "server" not in response.headers


# ------------------------------------------------------------------------------------- fuzzing

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FOO"]
PATHS = st.one_of(
    st.sampled_from([*FILES, "/api/next", "/api/vote", "/api/undo", "/?token=", "/?token=%ff"]),
    st.text(st.characters(codec="utf-8", exclude_characters="#\r\n"), max_size=40).map(
        lambda text: "/" + text
    ),
)
HEADER_VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["cookie", "origin", "content-type", "content-length", "host", "accept", "range",
         "transfer-encoding", "x-forwarded-host", "x-http-method-override", "if-none-match"]
    ),
    HEADER_VALUES,
    max_size=3,
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = ["key", "ticket", "action", "order", "all_bad", "strength", "comment", "reason",
          "active_ms", "wall_ms", "target"]  # fmt: skip
BODIES = st.one_of(
    st.binary(max_size=200),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(FIELDS), VALUES).map(lambda value: json.dumps(value).encode()),
)


@given(method=st.sampled_from(METHODS), path=PATHS, headers=HEADERS, body=BODIES,
       honest=st.booleans())  # fmt: skip
@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_request_makes_the_server_fail(
    client: Browser, method: str, path: str, headers: dict[str, str], body: bytes, honest: bool
) -> None:
    if honest:  # past the guard, where the endpoints are
        headers = {"content-type": "application/json"}
    response = client.send(method, path, body, headers)
    assert 200 <= response.status < 500, response.text
    assert response.headers["content-security-policy"] == CSP


@given(st.fixed_dictionaries({}, optional={name: VALUES for name in FIELDS}))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_only_a_well_formed_vote_is_stored(
    collection: Collection, client: Browser, fields: dict[str, Any]
) -> None:
    shown = client.get("/api/next").json()["item"]
    if shown is None:
        return
    before = len(lines(collection.log.path))
    body = {"key": new_id(), "ticket": shown["ticket"], "order": "1>2"} | fields
    response = client.post("/api/vote", body)
    assert response.status in (200, 400, 409), response.text
    assert len(lines(collection.log.path)) == before + (response.status == 200)
    read_events(collection.log.path)


RAW = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    b"POST /api/vote HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nzz",
    b"\x00" * 100,
    b"GET / HTTP/9.9\r\n\r\n",
]


def test_bytes_that_are_no_http_do_not_stop_the_server(collection: Collection) -> None:
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = server_of(create_app(collection, TOKENS, port=port))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        for raw in RAW:
            with closing(socket.create_connection(("127.0.0.1", port), timeout=60)) as wire:
                wire.settimeout(60)
                try:
                    wire.sendall(raw)
                    wire.shutdown(socket.SHUT_WR)
                    answer = wire.recv(4096)
                except (ConnectionError, OSError):
                    continue
                assert not answer.startswith(b"HTTP/1.1 5")
                assert b"server:" not in answer.lower()
        origin = f"http://127.0.0.1:{port}"
        response = httpx.get(f"{origin}/?token=token-of-ann", follow_redirects=True)
        assert response.status_code == 200
    finally:
        server.should_exit = True
        thread.join()


def test_a_busy_port_says_what_to_do() -> None:
    with closing(bind("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}") as caught:
            bind("127.0.0.1", port)
    assert "--port 0" in str(caught.value)


def test_answers_are_not_held_back_by_nagles_algorithm() -> None:
    # asyncio switches it off on sockets that name their protocol, and on no others.
    with closing(bind("127.0.0.1", 0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP

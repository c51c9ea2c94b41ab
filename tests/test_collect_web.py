"""The page's server against other pages, other people and nonsense: one test a threat."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignkit.cli.rank import ANY_ADDRESS, _public_name
from alignkit.collect.log import EventLog, new_id, read_events
from alignkit.collect.session import Collection
from alignkit.collect.web.guard import BODY_LIMIT, CSP, new_token
from alignkit.collect.web.server import FILES, bind, create_app, server_of
from alignkit.errors import DiskFull, RecipeError, UserError
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
    assert other_tab.status == 409 and "already answered" in other_tab.json()["error"]
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


# ------------------------------------------------------------------------------------- threats


def test_threat_5_no_address_takes_a_path(client: Browser) -> None:
    for path in (
        "/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
        "/..\\..\\etc\\passwd", "/page/style.css", "//etc/passwd", "/style.css/../guard.py",
        "/static/../server.py", "/%00", "/style.css%00.py",
    ):  # fmt: skip
        response = client.get(path)
        assert response.status == 404 or response.headers["content-type"].startswith(
            ("text/css", "text/html")
        )
        assert "root:" not in response.text and "import " not in response.text
    routes = {route.path for route in client.app.routes}  # type: ignore[attr-defined]
    assert routes == {*FILES, "/api/next", "/api/vote", "/api/undo"}
    assert not any("{" in route for route in routes)


def test_threat_6_no_text_of_a_model_is_part_of_the_page(client: Browser) -> None:
    for path, (_, media_type) in FILES.items():
        response = client.get(path)
        assert response.headers["content-type"].startswith(media_type)
        assert "PWN" not in response.text
    data = client.get("/api/next")
    assert data.headers["content-type"] == "application/json"
    assert data.headers["x-content-type-options"] == "nosniff"
    assert XSS[0] in data.json()["item"]["prompt"][0]["text"]


def test_threat_6_the_policy_lets_nothing_foreign_run(client: Browser) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert policy == CSP and policy.startswith("default-src 'none'")
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    html = client.get("/").text
    assert "<style" not in html and not re.search(r"<script(?![^>]* src=)", html)
    assert not re.search(r"\s(on\w+|style)=", html)
    for path in FILES:  # works offline: nothing from anywhere else
        assert not re.search(r"(src|href|url\()\W*https?:", client.get(path).text)
    for name in ("text.js", "page.js", "server.js", "offline.js"):
        script = (Path(__file__).parent.parent / "alignkit/collect/web/page" / name).read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)


@pytest.mark.parametrize("origin", [None, "http://evil.example", "null", f"{ORIGIN}.evil.example",
                                    "http://127.0.0.1:9999", "https://127.0.0.1:8765"])  # fmt: skip
def test_threat_7_a_vote_from_another_page_is_refused(
    collection: Collection, client: Browser, origin: str | None
) -> None:
    client.headers.pop("origin")
    if origin:
        client.headers["origin"] = origin
    assert vote_on(client, "1>2>3").status == 403
    assert lines(collection.log.path) == []


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain",
                                  "multipart/form-data", ""])  # fmt: skip
def test_threat_7_a_form_cannot_vote(client: Browser, kind: str) -> None:
    body = json.dumps({"key": new_id(), "ticket": "x"})
    assert client.post("/api/vote", body.encode(), **{"content-type": kind}).status == 415


def test_threat_7_the_cookie_stays_with_its_page(collection: Collection) -> None:
    app = create_app(collection, TOKENS, port=PORT)
    response = Browser(app, ORIGIN).get("/?token=token-of-ann")
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    assert cookie.startswith(f"alignkit-{PORT}=")  # cookies do not know ports


@pytest.mark.parametrize("host", ["evil.example:8765", "evil.example", "127.0.0.1", "",
                                  "127.0.0.1:80", "127.0.0.1:8765.evil.example"])  # fmt: skip
def test_threat_8_another_name_of_this_address_is_refused(client: Browser, host: str) -> None:
    response = client.get("/api/next", host=host)
    assert response.status == 421
    assert "item" not in response.text


def test_threat_8_the_names_that_were_allowed_work(collection: Collection) -> None:
    app = create_app(collection, TOKENS, port=PORT, hosts=("127.0.0.1", "::1", "lab.example"))
    for name in ("127.0.0.1", "[::1]", "lab.example", "LAB.example"):
        client = Browser(app, f"http://{name}:{PORT}")
        assert client.open("token-of-ann").status == 303
        assert client.get("/api/next").status == 200


@pytest.mark.parametrize(
    "token", ["", "wrong", "token-of-an", "token-of-ann.", "\u00ff", "a" * 9999]
)
def test_threat_9_without_the_token_there_is_nothing(collection: Collection, token: str) -> None:
    client = Browser(create_app(collection, TOKENS, port=PORT), ORIGIN)
    assert client.open(quote(token, errors="replace")).status == 403
    assert client.open(token).status == 403
    client.headers["cookie"] = f"alignkit-{PORT}={token}"
    for path in [*FILES, "/api/next"]:
        assert client.get(path).status == 403
    assert client.post("/api/vote", {}, origin=ORIGIN).status == 403


def test_threat_9_tokens_are_long_distinct_and_leave_the_address_bar(
    collection: Collection,
) -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100 and min(map(len, tokens)) >= 32  # 192 bits
    app = create_app(collection, TOKENS, port=PORT)
    response = Browser(app, ORIGIN).get("/?token=token-of-ann")
    assert response.headers["location"] == "/"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-store"


def test_threat_9_every_address_needs_a_name() -> None:
    for host in ANY_ADDRESS:
        with pytest.raises(RecipeError, match="every address"):
            _public_name(host, ())
        assert _public_name(host, ("lab.example",)) == "lab.example"


def test_threat_11_a_large_body_is_refused_however_it_comes(client: Browser) -> None:
    large = b" " * (BODY_LIMIT + 1)
    assert client.post("/api/vote", large).status == 413
    kind = {"content-type": "application/json"}
    assert client.send("POST", "/api/vote", [b" " * 65536] * 20, kind).status == 413
    for length in ("9" * 30, "-1", "x", ""):
        assert client.post("/api/vote", b"{}", **{"content-length": length}).status == 413


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b"1", b"NaN", b'"x"', b"\xff", b"[" * 50_000, b'{"key":"\\ud800"}',
    b'{"key":%s}' % (b"9" * 5000), b'{"key":1,"ticket":"x"}', b'{"key":"","ticket":"","who":"me"}',
    b'{"key":"k","ticket":"x","all_bad":1}', b'{"key":"k","ticket":"x","action":"undo"}',
])  # fmt: skip
def test_threat_12_a_malformed_body_is_a_400(
    collection: Collection, client: Browser, body: bytes
) -> None:
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

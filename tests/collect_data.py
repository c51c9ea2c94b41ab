"""Small collections for the tests of ranking."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from alignkit.collect.items import Pool, pool_of
from alignkit.collect.log import EventLog
from alignkit.collect.plan import Settings
from alignkit.collect.session import Collection
from alignkit.data.records import Candidates

XSS = (
    "<script>window.PWN=1</script>",
    '"><img src=x onerror="window.PWN=1">',
    "</textarea></script><svg/onload=window.PWN=1>",
)


def item(
    number: int | str,
    answers: Sequence[str] = ("yes", "no"),
    *,
    prompt: str | None = None,
    models: Sequence[str] | None = None,
    **fields: object,
) -> Candidates:
    """One record; cids are c0, c1, …, models secret-model-0, …"""
    return Candidates.model_validate(
        {
            "id": f"item-{number}",
            "prompt": [{"role": "user", "content": prompt or f"question {number}?"}],
            "candidates": [
                {
                    "cid": f"c{place}",
                    "messages": [{"role": "assistant", "content": answer}],
                    "model": models[place] if models else f"secret-model-{place}",
                }
                for place, answer in enumerate(answers)
            ],
            **fields,
        }
    )


def items(count: int, answers: int = 2) -> list[Candidates]:
    """`count` records with distinct answers."""
    return [item(n, [f"answer {n}.{place}" for place in range(answers)]) for n in range(count)]


def write(path: Path, records: Sequence[Candidates]) -> Path:
    path.write_text("".join(record.model_dump_json() + "\n" for record in records))
    return path


@contextmanager
def collecting(
    output: Path, records: Sequence[Candidates] | Pool, *annotators: str, **settings: object
) -> Iterator[Collection]:
    """A collection over these records, its log open."""
    pool = records if isinstance(records, Pool) else pool_of(records)
    stop = bool(settings.pop("stop_when_decided", False))
    with EventLog(output) as log:
        yield Collection(
            pool,
            log,
            Settings(annotators=annotators or ("ann",), **settings),  # type: ignore[arg-type]
            stop_when_decided=stop,
        )


def lines(path: Path) -> list[dict[str, object]]:
    """The file's lines, split as our readers split them."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


@dataclass
class Reply:
    """What the server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Browser:
    """One tab: speaks ASGI to the app, so that a test can say things no HTTP client would."""

    app: Any
    origin: str
    headers: dict[str, str] = field(default_factory=dict)

    def open(self, token: str) -> Reply:
        """Follow an annotator's link: the cookie is kept, the origin is the page's own."""
        reply = self.get(f"/?token={token}")
        if reply.status == 303:
            self.headers["cookie"] = reply.headers["set-cookie"].partition(";")[0]
            self.headers["origin"] = self.origin
        return reply

    def get(self, path: str, **headers: str) -> Reply:
        return self.send("GET", path, headers=headers)

    def post(self, path: str, value: object, **headers: str) -> Reply:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.send("POST", path, body, {"content-type": "application/json"} | headers)

    def send(
        self, method: str, path: str, body: bytes | list[bytes] = b"", headers: Any = None
    ) -> Reply:
        """One request; `body` as a list comes in pieces and without a length."""
        chunks = body if isinstance(body, list) else [body]
        host = {"host": self.origin.removeprefix("http://")}
        sent = host | self.headers | dict(headers or {})
        if not isinstance(body, list):
            sent = {"content-length": str(len(body))} | sent
        where, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(where),
            "raw_path": where.encode("utf-8", "replace"),
            "query_string": query.encode("utf-8", "replace"),
            "root_path": "",
            "headers": [
                (name.encode("latin-1"), value.encode("latin-1", "replace"))
                for name, value in sent.items()
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8765),
        }
        exchange = self._exchange(scope, chunks)
        try:
            exchange.send(None)
        except StopIteration as done:
            reply: Reply = done.value
            return reply
        raise AssertionError("nothing here waits for anything")

    async def _exchange(self, scope: dict[str, Any], chunks: list[bytes]) -> Reply:
        waiting = [
            {"type": "http.request", "body": chunk, "more_body": n < len(chunks)}
            for n, chunk in enumerate(chunks, start=1)
        ]
        reply = Reply(0, {}, b"")

        async def receive() -> dict[str, Any]:
            return waiting.pop(0) if waiting else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                reply.body += message.get("body", b"")

        await self.app(scope, receive, send)
        return reply

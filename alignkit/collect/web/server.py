"""Serve the ranking page: three endpoints, a handful of files, one writer."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from alignkit.collect.log import Conflict
from alignkit.collect.session import Action, Collection, Session, Submission
from alignkit.collect.web.connections import Patience, protocol_of
from alignkit.collect.web.guard import BODY_LIMIT, LOOPBACK, Guard
from alignkit.errors import AlignkitError, DiskFull, UserError

PAGE = Path(__file__).parent / "page"
LISTENING = "0A"  # the state in /proc/net/tcp
# The only paths there are; none takes a parameter.
FILES = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/text.js": ("text.js", "text/javascript"),
    "/source.js": ("server.js", "text/javascript"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


class VoteBody(BaseModel):
    """The body of /api/vote."""

    model_config = ConfigDict(strict=True, extra="forbid")

    key: str
    ticket: str
    action: Action = "rank"
    order: str = Field("", max_length=100)
    all_bad: bool = False
    strength: int | None = None
    comment: str = ""
    reason: str | None = None
    active_ms: int | None = None
    wall_ms: int | None = None


class UndoBody(BaseModel):
    """The body of /api/undo; `target` is the last event that the page knows."""

    model_config = ConfigDict(strict=True, extra="forbid")

    key: str
    target: str


class Page:
    """The endpoints. Saving runs in the event loop, so votes are stored one after another."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection

    def routes(self) -> list[BaseRoute]:
        files = [Route(path, _file(*file), methods=["GET"]) for path, file in FILES.items()]
        return [
            *files,
            Route("/api/next", self.next, methods=["GET"]),
            Route("/api/vote", self.vote, methods=["POST"]),
            Route("/api/undo", self.undo, methods=["POST"]),
        ]

    async def next(self, request: Request) -> Response:
        """Return what to show now."""
        return _json(screen(self._session(request)))

    async def vote(self, request: Request) -> Response:
        """Store a vote; the response means that it is on disk."""
        vote = VoteBody.model_validate(await _body(request))
        session = self._session(request)
        receipt = session.submit(Submission(**vote.model_dump()), ui="web")
        lengths = session.presentation(vote.ticket).characters()
        saved = {"id": receipt.event_id, "stored": receipt.stored, "characters": lengths}
        return _json({"saved": saved} | screen(session))

    async def undo(self, request: Request) -> Response:
        """Undo a vote and show its item again."""
        undo = UndoBody.model_validate(await _body(request))
        session = self._session(request)
        receipt = session.undo(undo.key, undo.target, ui="web")
        return _json({"undone": receipt.event_id if receipt else None} | screen(session))

    def _session(self, request: Request) -> Session:
        return self.collection.session(request.state.annotator)


def screen(session: Session) -> dict[str, Any]:
    """Return all that the page gets: texts and progress; no model, score, gold or item id."""
    shown = session.next()
    previous = session.previous()
    progress = session.progress()
    return {
        "item": shown.public() if shown else None,
        "previous": None
        if previous is None
        else {
            "order": previous.order,
            "all_bad": previous.all_bad,
            "strength": previous.strength,
            "comment": previous.comment,
        },
        "progress": {"done": progress.done, "total": progress.total, "mine": progress.mine},
        "undo": session.last(),
        "annotator": session.annotator,
    }


def create_app(
    collection: Collection,
    tokens: Mapping[str, str],
    *,
    port: int,
    hosts: tuple[str, ...] = LOOPBACK,
    codes: Mapping[str, str] | None = None,
) -> Starlette:
    """Return the app for the annotators of `tokens` (name -> secret), under these host names only.

    Each of `codes` (code -> name) opens the page once without a token.
    """
    names = {f"[{host}]" if ":" in host else host for host in hosts}
    guard = Middleware(
        Guard,
        tokens=dict(tokens),
        codes=dict(codes or {}),
        hosts={f"{name}:{port}" for name in names} | (names if port == 80 else set()),
        # Cookies ignore ports: two collections on one machine must not share one.
        cookie=f"alignkit-{port}",
    )
    return Starlette(
        routes=Page(collection).routes(),
        middleware=[guard],
        exception_handlers={
            HTTPException: _refused,
            ValidationError: _malformed,
            AlignkitError: _failed,
        },
    )


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; UserError if the port is busy."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Name the protocol: asyncio turns Nagle's algorithm off only on sockets that do. Otherwise
    # each response waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(
            f"cannot listen on {host} port {port}: {error.strerror}{_holder(port)}",
            hint="Choose another with --port, or any free one with --port 0",
        ) from None
    return listener


def _holder(port: int) -> str:
    """Return `, by process 123` for the listener on this port, if the system reveals it."""
    sockets = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        rows = table.read_text().splitlines()[1:] if table.is_file() else []
        for row in (line.split() for line in rows):
            if row[1].endswith(f":{port:04X}") and row[3] == LISTENING:
                sockets.add(f"socket:[{row[9]}]")
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it may be closed by now, or another user's
            if str(handle.readlink()) in sockets:
                return f", by process {handle.parts[2]}"
    return ""


def server_of(app: Starlette, patience: Patience | None = None) -> uvicorn.Server:
    """Return the HTTP server of the page; `run(sockets=[...])` serves until a signal."""
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,  # request lines contain tokens
        server_header=False,
        lifespan="off",
        ws="none",
        loop="asyncio",
        proxy_headers=False,
        http=protocol_of(patience or Patience()),
        h11_max_incomplete_event_size=2**16,
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config)


def _file(name: str, media_type: str) -> Any:
    content = (PAGE / name).read_bytes()

    async def endpoint(_request: Request) -> Response:
        return Response(content, media_type=media_type)

    return endpoint


async def _body(request: Request) -> Any:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise HTTPException(413, "the vote is too large")
    try:
        return orjson.loads(bytes(body))
    except orjson.JSONDecodeError:
        raise HTTPException(400, "the body is not JSON") from None


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)


async def _malformed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "body"
    return _json({"error": f"{place}: {first['msg']}"}, 400)


async def _failed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, AlignkitError)
    text = " ".join(filter(None, [error.message.rstrip(".") + ".", error.hint]))
    return _json({"error": text}, next(code for kind, code in STATUS if isinstance(error, kind)))


STATUS: list[tuple[type[AlignkitError], int]] = [
    (Conflict, 409),
    (DiskFull, 507),
    (UserError, 400),
    (AlignkitError, 500),
]

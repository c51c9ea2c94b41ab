"""Connections of the page, so held that nobody without a token can keep others out.

A connection is a stranger's until it has shown a token. Strangers get little time for a request,
and when there are too many of them the oldest goes, from the address that holds most. So there is
always room for one more, and who comes with a token is no stranger a moment later.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from uvicorn.protocols.http.h11_impl import H11Protocol

Phase = Literal["head", "body", "answer"]


@dataclass(frozen=True)
class Patience:
    """How many connections are kept, and for how many seconds the other side is waited for."""

    head: float = 10.0  # from the connection, or the last answer, to the end of a request's head
    body: float = 30.0  # then to the end of its body
    answer: float = 60.0  # then until the answer is ready and taken
    connections: int = 512
    strangers: int = 256
    of_one_address: int = 128


class Connection(H11Protocol):
    """uvicorn's connection with an end to every wait. uvicorn itself ends waits between requests
    only, and turns everybody away once there are too many connections."""

    patience = Patience()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request, and make room where strangers crowd."""
        super().connection_made(transport)
        self.is_stranger = True
        self.since = self.loop.time()
        self.phase: Phase = "head"
        self.left_to_take = 0
        self.until = self.since + self.patience.head
        self.timer = self.loop.call_at(self.until, self._check_time)
        peer = transport.get_extra_info("peername")
        # Not what a header says: the address that the packets go to.
        self.address = str(peer[0]) if peer else ""
        self._make_room()

    def data_received(self, data: bytes) -> None:
        """Bytes do not buy time; the end of a head or a body does."""
        super().data_received(data)
        self._note_phase()

    def on_response_complete(self) -> None:
        """The next request may come; whoever showed a token is known from now on."""
        if "annotator" in self.scope.get("state", {}):
            self.is_stranger = False
        self.phase = "answer"
        super().on_response_complete()
        self._note_phase()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self.timer.cancel()
        super().connection_lost(exc)

    def _note_phase(self) -> None:
        cycle = self.cycle
        phase: Phase = "answer"
        if cycle is None or cycle.response_complete:
            phase = "head"
        elif cycle.more_body:
            phase = "body"
        if phase != self.phase:
            self.phase = phase
            self.until = self.loop.time() + float(getattr(self.patience, phase))
            self.timer.cancel()
            self.timer = self.loop.call_at(self.until, self._check_time)

    def _check_time(self) -> None:
        """Time is up; but an answer that is still being taken, however slowly, may go on."""
        left = self.transport.get_write_buffer_size()
        if not self.is_stranger and left and left != self.left_to_take:
            self.left_to_take = left
            self.timer = self.loop.call_later(self.patience.answer, self._check_time)
        else:
            # `close` would wait until the other side has taken what is still to be sent.
            self.transport.abort()

    def _make_room(self) -> None:
        """Let the oldest of the strangers go while there are too many connections of some sort."""
        strangers = [
            each
            for each in self.connections
            if isinstance(each, Connection) and each.is_stranger and each is not self
        ]
        held = Counter(each.address for each in strangers)
        patience = self.patience
        alone = held[self.address] >= patience.of_one_address
        crowded = len(strangers) >= patience.strangers
        if not (alone or crowded or len(self.connections) > patience.connections):
            return
        address = self.address if alone or not held else held.most_common(1)[0][0]
        oldest = min(
            (each for each in strangers if each.address == address),
            key=lambda each: each.since,
            default=self,  # all who are here have shown a token: no room for a stranger
        )
        self.connections.discard(oldest)
        oldest.is_stranger = False  # it counts no more, though its end is told only later
        oldest.transport.abort()


def protocol_of(patience: Patience) -> type[asyncio.Protocol]:
    """The class of connections that wait so long."""
    return type("Connection", (Connection,), {"patience": patience})

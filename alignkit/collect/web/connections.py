"""Limit connections of the page so that nobody without a token can lock others out.

A connection is a stranger's until it shows a token. Strangers get little time per request. When
there are too many, the oldest of the address with most connections is dropped. So there is always
room for one more, and an annotator with a token stops being a stranger at the first request.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from uvicorn.protocols.http.h11_impl import H11Protocol

Phase = Literal["head", "body", "response"]


@dataclass(frozen=True)
class Patience:
    """Limits on the number of connections, and on waiting for the client, in seconds."""

    head: float = 10.0  # from the connection, or the last response, to the end of a request's head
    body: float = 30.0  # then to the end of its body
    response: float = 60.0  # then until the response is ready and received
    connections: int = 512
    strangers: int = 256
    of_one_address: int = 128


class Connection(H11Protocol):
    """A uvicorn connection that limits every wait.

    uvicorn itself limits only the wait between requests, and refuses everybody once there are too
    many connections.
    """

    patience = Patience()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for a request, and drop a stranger if there are too many."""
        super().connection_made(transport)
        self.is_stranger = True
        self.since = self.loop.time()
        self.phase: Phase = "head"
        self.left_to_take = 0
        self.until = self.since + self.patience.head
        self.timer = self.loop.call_at(self.until, self._check_time)
        peer = transport.get_extra_info("peername")
        # The address of the peer, which unlike a header cannot be forged.
        self.address = str(peer[0]) if peer else ""
        self._make_room()

    def data_received(self, data: bytes) -> None:
        """Extend the time limit at the end of a head or body, not for single bytes."""
        super().data_received(data)
        self._note_phase()

    def on_response_complete(self) -> None:
        """Wait for the next request; a client that showed a token is no stranger any more."""
        if "annotator" in self.scope.get("state", {}):
            self.is_stranger = False
        self.phase = "response"
        super().on_response_complete()
        self._note_phase()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timer."""
        self.timer.cancel()
        super().connection_lost(exc)

    def _note_phase(self) -> None:
        cycle = self.cycle
        phase: Phase = "response"
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
        """Close the connection when time is up, unless a known client is still receiving."""
        left = self.transport.get_write_buffer_size()
        if not self.is_stranger and left and left != self.left_to_take:
            self.left_to_take = left
            self.timer = self.loop.call_later(self.patience.response, self._check_time)
        else:
            # `close` would wait for the client to receive the rest of the response.
            self.transport.abort()

    def _make_room(self) -> None:
        """Drop the oldest stranger if an address, all strangers or all connections are too many."""
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
            default=self,  # everybody else has shown a token: no room for a stranger
        )
        self.connections.discard(oldest)
        oldest.is_stranger = False  # do not count it again before connection_lost arrives
        oldest.transport.abort()


def protocol_of(patience: Patience) -> type[asyncio.Protocol]:
    """Return the class of connections with these limits."""
    return type("Connection", (Connection,), {"patience": patience})

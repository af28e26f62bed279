"""Connections that nobody can hold for nothing: a request has to be there in time, and no more fit than files may be
open.
"""

import asyncio
import resource
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

ARRIVAL = 60.0  # seconds in which a request has to have come, with its body
_MOST = 1000
_AT_ONCE = 64  # connections that one turn of the event loop accepts
_TURNS = 4  # those accepted in two turns are not counted yet, those dropped are closed a turn later; one to spare
_WANTED_FILES = 4096
_OTHER_FILES = 64  # of the database, of what is read for answers
_LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def room() -> tuple[int, int]:
    """How many connections fit, and how many may be accepted at once so that no more than fit are ever open.

    Raises the number of files that this process may open, where it may.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _WANTED_FILES:
        wanted = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(_WANTED_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft == resource.RLIM_INFINITY:
        return _MOST, _AT_ONCE
    at_once = min(_AT_ONCE, max(soft // (4 * _TURNS), 1))
    return max(min(_MOST, soft - _TURNS * at_once - _OTHER_FILES), 8), at_once


class BoundedConnection(H11Protocol):
    """A connection whose requests have to come in time.

    Args:
        most: connections that fit. One more takes the place of the one that has waited longest for its request; where
            all are being answered, it is closed.
        arrival: seconds from the first byte of a request, or from the beginning of the connection, to its last.
    """

    def __init__(self, *args: Any, most: int = _MOST, arrival: float = ARRIVAL, **named: Any) -> None:
        super().__init__(*args, **named)
        self._most = most
        self._arrival = arrival
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most:
            others = [one for one in self.connections if isinstance(one, BoundedConnection) and one._timer]
            oldest = min(others, key=lambda one: one._timer.when() if one._timer else 0.0, default=self)
            oldest._drop()
        if not transport.is_closing():
            self._expect()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._rest()
        elif self._timer is None:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._timer = self.loop.call_later(self._arrival, self._drop)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop(self) -> None:
        """Closes it, with an answer where none has begun."""
        self._rest()
        self.connections.discard(self)
        if not self.transport.is_closing():
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.write(_LATE)
            self.transport.close()

"""Requests of strangers: how large, how packed, how deep and how many at once; read away from the event loop.

What breaks a bound is refused with the rule and a status of 4xx, so that a client does not send it again.
"""

import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from starlette.requests import ClientDisconnect, Request

from prunegpt.errors import PruneGPTError
from prunegpt.tracking.values import plain

LARGEST = 16 << 20  # bytes of a request, unpacked; the client sends 10 MiB of rows at most
MOST_VALUES = 1_000_000  # of a request; a value takes some 70 bytes of memory
MOST_HELD = 256 << 20  # bytes of all requests that are being read
_PARSERS = 4  # requests that are parsed at the same time

_Given = TypeVar("_Given")
_Model = TypeVar("_Model", bound="ClientMessage")


class Rejected(PruneGPTError):
    """A request that is answered with an error, and its HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        self.status = status
        super().__init__(message)


class ClientMessage(BaseModel):
    """Base of what clients send, by its names in camel case; what nothing here has to know is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, alias_generator=to_camel)

    @classmethod
    def of(cls: type[_Model], given: Any, what: str) -> _Model:
        """What was sent, checked.

        Raises:
            Rejected: it is something else.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            told = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
            raise Rejected(f"{what} is malformed: {'; '.join(told)}.") from error


class Intake:
    """Reads requests, and works on them in threads of its own number."""

    def __init__(self) -> None:
        self._held = 0
        self._limiter = CapacityLimiter(_PARSERS)

    async def run(self, work: Callable[..., _Given], *args: Any) -> _Given:
        """Does some work beside the event loop."""
        return await to_thread.run_sync(work, *args, limiter=self._limiter)

    async def body(self, request: Request, work: Callable[[bytes], _Given], largest: int = LARGEST) -> _Given:
        """What comes of the body of a request.

        Raises:
            Rejected: the body is larger than that, or too many others are being read.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            held += size
            self._held += size
            if self._held > MOST_HELD:
                raise Rejected("this server is reading too many requests. Send this one again later.", 503)

        try:
            return await self.run(work, await received(request, largest, hold))
        finally:
            self._held -= held


async def received(request: Request, largest: int, hold: Callable[[int], None] = lambda size: None) -> bytes:
    """The body of a request.

    Args:
        largest: bytes that it may have.
        hold: called with the size of every part, in bytes.

    Raises:
        Rejected: it is larger, or who sends it has gone, so that nobody hears the answer.
    """
    data = bytearray()
    try:
        async for part in request.stream():
            hold(len(part))
            data += part
            if len(data) > largest:
                raise Rejected(f"a request may have {largest} bytes; it has more.", 413)
    except ClientDisconnect as error:
        raise Rejected("a request must be sent whole; the client of this one has gone.") from error
    return bytes(data)


async def saved(request: Request, file: Path, largest: int) -> None:
    """Writes the body of a request into a new file, some of it at a time.

    Raises:
        OSError: the file cannot be written.
        Rejected: as `received` does.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with file.open("wb") as target:
        try:
            async for part in request.stream():
                size += len(part)
                if size > largest:
                    raise Rejected(
                        f"a file may have {largest} bytes here; it has more. `prunegpt serve --upload-limit` sets it.",
                        413,
                    )
                await to_thread.run_sync(target.write, part)
        except ClientDisconnect as error:
            raise Rejected("a request must be sent whole; the client of this one has gone.") from error


def unpacked(body: bytes, encoding: str) -> bytes:
    """A body as it was before it was packed.

    Raises:
        Rejected: it is packed in another way than gzip, damaged, or too large.
    """
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise Rejected(f"a request may be packed by gzip; it is by {encoding[:20]!r}.", 415)
    reader = zlib.decompressobj(wbits=31)  # with gzip's header
    try:
        found = reader.decompress(body, LARGEST + 1)
    except zlib.error as error:
        raise Rejected(f"a request must be whole gzip: {error}.") from error
    if len(found) > LARGEST:
        raise Rejected(f"a request may have {LARGEST} bytes when it is unpacked; it has more.", 413)
    if not reader.eof or reader.unused_data:
        raise Rejected("a request must be whole gzip; it ends too early or too late.")
    return found


def parsed(text: str | bytes, what: str) -> Any:
    """JSON that a client sent, as plain data.

    Raises:
        Rejected: it is no JSON, holds too many values, or is nested too deep.
    """
    brackets: Iterable[Any] = (b",", b"[", b"{") if isinstance(text, bytes) else (",", "[", "{")
    if sum(map(text.count, brackets)) > MOST_VALUES:  # before they are made: they take more memory than their text
        raise Rejected(f"{what} may hold {MOST_VALUES} values; it holds more.", 413)
    try:
        return plain(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise Rejected(f"{what} must be JSON: {error}.") from error


def parsed_object(text: str | bytes, what: str) -> dict[str, Any]:
    """The same, of a JSON object.

    Raises:
        Rejected: as above, or it is something else.
    """
    found = parsed(text, what)
    if not isinstance(found, dict):
        raise Rejected(f"{what} must be a JSON object, got {type(found).__name__}.")
    return found

"""The routes of the W&B protocol, to be mounted at "/" of a server, which decides who may ask."""

import gzip
import io
import json
import zlib
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from prunegpt.root import Root
from prunegpt.tracking.endpoint.graphql import Operations, Refused
from prunegpt.tracking.endpoint.runs import LARGEST_FILE, Runs
from prunegpt.tracking.foreign import RunPath

_LARGEST_BODY = 64 << 20  # bytes of a request, unpacked


class Endpoint:
    """What `wandb sweep`, `wandb agent` and online runs ask of a server, answered from a root.

    A client sends its WANDB_API_KEY as the password of basic authentication; where the server has a token, that is it.
    """

    def __init__(self, root: Root) -> None:
        self._runs = Runs(root)
        self._operations = Operations(root, self._runs)

    def routes(self) -> list[Route]:
        at = "/files/{entity}/{project}/{run}"
        return [
            Route("/{entity}/{project}/runs/{run}", self._show_run),
            Route("/{entity}/{project}/sweeps/{sweep}", self._show_sweep),
            Route("/graphql", self._graphql, methods=["POST"]),
            Route(f"{at}/file_stream", self._stream, methods=["POST"]),
            Route(f"{at}/upload/{{path:path}}", self._upload, methods=["PUT", "POST"]),
        ]

    def close(self) -> None:
        """Closes the files of the runs, and looks after attempts of agents no more."""
        self._operations.close()
        self._runs.close()

    async def _graphql(self, request: Request) -> Response:
        asked = await _json(request)
        if asked is None:
            return _error("a request must be a JSON object with a query.", 400)
        address, credentials = str(request.base_url).rstrip("/"), request.headers.get("authorization", "")
        try:
            return JSONResponse(await run_in_threadpool(self._operations.answer, asked, address, credentials))
        except Refused as error:
            return _error(str(error), error.status)

    async def _stream(self, request: Request) -> Response:
        body = await _json(request)
        if body is None:
            return _error("a stream must be a JSON object.", 400)
        await run_in_threadpool(self._runs.stream, _run(request), body)
        return JSONResponse({})

    async def _upload(self, request: Request) -> Response:
        content = await _body(request, LARGEST_FILE)
        if content is not None:
            await run_in_threadpool(self._runs.keep_file, _run(request), request.path_params["path"], content)
        return Response(status_code=200)

    async def _show_run(self, request: Request) -> Response:
        return RedirectResponse(await run_in_threadpool(self._operations.page_of_run, _run(request)), 303)

    async def _show_sweep(self, request: Request) -> Response:
        found = await run_in_threadpool(self._operations.page_of_sweep, request.path_params["sweep"])
        return RedirectResponse(found, 303)


def _run(request: Request) -> RunPath:
    return RunPath(*(request.path_params[name] for name in ("entity", "project", "run")))


async def _json(request: Request) -> dict[str, Any] | None:
    """The JSON object that was sent; None where it is none, or too large."""
    body = await _body(request, _LARGEST_BODY)
    try:
        if request.headers.get("content-encoding") == "gzip":
            with gzip.GzipFile(fileobj=io.BytesIO(body or b"")) as file:
                body = file.read(_LARGEST_BODY)
        found = json.loads(body or b"")
    except (ValueError, OSError, zlib.error):
        return None
    return found if isinstance(found, dict) else None


async def _body(request: Request, largest: int) -> bytes | None:
    """What was sent; None where it is too large."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > largest:
            return None
    return bytes(data)


def _error(message: str, status: int) -> Response:
    return JSONResponse({"data": None, "errors": [{"message": message}], "error": message}, status_code=status)

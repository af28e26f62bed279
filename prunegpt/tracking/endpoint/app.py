"""The routes of the W&B protocol, to be mounted at "/" of a server, which decides who may ask."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

from sqlalchemy.exc import DBAPIError
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from prunegpt.errors import StoreError
from prunegpt.root import Root
from prunegpt.tracking.endpoint.arguments import run_at
from prunegpt.tracking.endpoint.artifacts import Artifacts
from prunegpt.tracking.endpoint.graphql import Operations
from prunegpt.tracking.endpoint.intake import Intake, Rejected, parsed_object, saved, unpacked
from prunegpt.tracking.endpoint.runs import UPLOADS, Runs, Streamed, is_below, not_kept
from prunegpt.tracking.ingest import StaleRunReaper
from prunegpt.tracking.run_path import RunPath

Handler = Callable[[Request], Awaitable[Response]]


class WandbServer:
    """What `wandb sweep`, `wandb agent` and online runs ask of a server, answered from a root.

    A client sends its WANDB_API_KEY as the password of basic authentication; where the server has a token, that is it.

    Args:
        uploads: bytes that the uploaded files of one run, or one file of an artifact, may take.
        artifacts: of the root; default with the usual limit.
    """

    def __init__(self, root: Root, uploads: int = UPLOADS, artifacts: Artifacts | None = None) -> None:
        self._incoming = root.path / "wandb" / "incoming"
        self._uploads = uploads
        self._reaper = StaleRunReaper(root)
        self._reaper.wake(soon=False)  # an earlier server may have left some
        self._runs = Runs(root, uploads, self._reaper.wake)
        self._artifacts = artifacts or Artifacts(root)
        self._operations = Operations(root, self._runs, self._artifacts, self._reaper.wake)
        self._intake = Intake()

    def routes(self) -> list[Route]:
        at = "/files/{entity}/{project}/{run}"
        return [
            Route("/{entity}/{project}/runs/{run}", _guarded(self._show_run)),
            Route("/{entity}/{project}/sweeps/{sweep}", _guarded(self._show_sweep)),
            Route("/graphql", _guarded(self._graphql), methods=["POST"]),
            Route(f"{at}/file_stream", _guarded(self._stream), methods=["POST"]),
            Route(f"{at}/upload/{{path:path}}", _guarded(self._upload), methods=["PUT", "POST"]),
            Route(f"{at}/{{path:path}}", _guarded(self._fetch)),
            Route("/artifact-manifests/{name}", _guarded(self._upload_manifest), methods=["PUT", "POST"]),
            Route("/artifact-manifests/{name}", _guarded(self._fetch_manifest)),
            Route("/artifact-files/{artifact}/{digest}", _guarded(self._upload_artifact), methods=["PUT", "POST"]),
            Route("/artifacts/{entity}/{digest}", _guarded(self._fetch_artifact)),
            Route("/artifacts/{entity}/{digest}/{name:path}", _guarded(self._fetch_artifact)),
            Route("/artifactsV2/{region}/{entity}/{path:path}", _guarded(self._fetch_version)),
            Route("/{entity}/{project}", _guarded(self._show_project)),
        ]

    def close(self) -> None:
        """Closes the database, and stops monitoring the attempts of agents."""
        self._reaper.close()
        self._runs.close()

    async def _graphql(self, request: Request) -> Response:
        address, credentials = str(request.base_url).rstrip("/"), request.headers.get("authorization", "")

        def answer(body: bytes) -> Response:
            asked = parsed_object(unpacked(body, _encoding(request)), "a request")
            return JSONResponse(self._operations.answer(asked, address, credentials))

        return await self._intake.body(request, answer)

    async def _stream(self, request: Request) -> Response:
        def keep(body: bytes) -> Response:
            streamed = parsed_object(unpacked(body, _encoding(request)), "a stream")
            self._runs.stream(_run(request), Streamed.of(streamed, "a stream"))
            return JSONResponse({})

        return await self._intake.body(request, keep)

    async def _upload(self, request: Request) -> Response:
        at, path = _run(request), request.path_params["path"]
        return await self._kept(request, path, partial(self._runs.keep_file, at, path), at)

    async def _upload_manifest(self, request: Request) -> Response:
        name = request.path_params["name"]
        return await self._kept(request, name, partial(self._artifacts.take_manifest, name))

    async def _upload_artifact(self, request: Request) -> Response:
        digest, version = request.path_params["digest"], self._artifacts.get(request.path_params["artifact"])
        if version is None:
            raise Rejected("there is no such artifact.", 404)
        at = RunPath(version.entity, version.project, version.run)
        return await self._kept(request, version.collection, partial(self._artifacts.take_file, digest), at)

    async def _kept(
        self, request: Request, name: str, keep: Callable[[Path], None], at: RunPath | None = None
    ) -> Response:
        """Takes the body of a request as a file, which is moved to its place once it is there whole.

        Args:
            at: the run in whose log a refusal is noted: clients continue as if nothing had happened.
        """
        content = self._incoming / uuid4().hex
        try:
            try:
                await saved(request, content, self._uploads)
                await self._intake.run(keep, content)
            except (OSError, ValueError) as error:
                raise not_kept(name, error) from error
        except Rejected as error:
            if at is not None:
                await self._intake.run(self._runs.note, at, f"{name[:80]} was not kept: {error}")
            raise
        finally:
            content.unlink(missing_ok=True)
        return Response(status_code=200)

    async def _fetch(self, request: Request) -> Response:
        keeper = await self._intake.run(self._runs.about, _run(request))
        folder = keeper.folder / "files" if keeper else None
        path = request.path_params["path"]
        return _file(folder / path if folder and is_below(path) else None)

    async def _fetch_manifest(self, request: Request) -> Response:
        return _file(self._artifacts.manifest(request.path_params["name"]))

    async def _fetch_artifact(self, request: Request) -> Response:
        return _file(self._artifacts.file(request.path_params["digest"]))

    async def _fetch_version(self, request: Request) -> Response:
        """By VERSION/DIGEST/NAME, before which there may be PROJECT/COLLECTION."""
        parts = request.path_params["path"].split("/")
        found = [parts[at + 1] for at in (0, 2) if at + 1 < len(parts) and self._artifacts.get(parts[at])]
        return _file(self._artifacts.file(found[0]) if found else None)

    async def _show_run(self, request: Request) -> Response:
        return RedirectResponse(await self._intake.run(self._operations.page_of_run, _run(request)), 303)

    async def _show_project(self, request: Request) -> Response:
        at = _run_at(request, "")
        return RedirectResponse(await self._intake.run(self._operations.page_of_project, at.entity, at.project), 303)

    async def _show_sweep(self, request: Request) -> Response:
        found = await self._intake.run(self._operations.page_of_sweep, request.path_params["sweep"])
        return RedirectResponse(found, 303)


def _guarded(handler: Handler) -> Handler:
    """A handler whose refusals are answers."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Rejected as error:
            return _error(str(error), error.status)
        except (StoreError, DBAPIError) as error:
            return _error(f"the database cannot be written now: {error}. Try again later.", 503)

    return answer


def _file(path: Path | None) -> Response:
    """A file to be saved, never to be shown: strangers have made it."""
    if path is None or not path.is_file():
        raise Rejected("there is no such file.", 404)
    return FileResponse(path, media_type="application/octet-stream")


def _encoding(request: Request) -> str:
    return request.headers.get("content-encoding", "").strip().casefold()


def _run(request: Request) -> RunPath:
    return _run_at(request, request.path_params["run"])


def _run_at(request: Request, run: str) -> RunPath:
    return run_at(RunPath(request.path_params["entity"], request.path_params["project"], ""), run)


def _error(message: str, status: int) -> Response:
    return JSONResponse({"data": None, "errors": [{"message": message}], "error": message}, status_code=status)

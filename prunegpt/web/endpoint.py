"""Entries of the API: a function each, whose signature says what it takes and gives.

Its route, the checking of requests and the OpenAPI 3.1 description are made from that.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prunegpt import __version__
from prunegpt.errors import LaunchError, PruneGPTError, ReportError, StoreError, UnknownPartError, unknown
from prunegpt.root import Root
from prunegpt.tracking.endpoint import intake
from prunegpt.tracking.endpoint.intake import received
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.security import ACTION_HEADER

PREFIX = "/api/v1"
_LARGEST_BODY = 1 << 20  # bytes
_ERRORS = {
    "400": "what is asked for is not understood",
    "401": "the token is missing or wrong",
    "403": "another host or origin, or a path outside the root",
    "404": "there is no such thing, or nothing to show yet",
}
_POST_ERRORS = {"409": "cannot be done now", "413": "too long", "415": "not JSON"}

H = TypeVar("H", bound=Callable[..., "BaseModel | Response"])


class Answer(BaseModel):
    """Base of what the API gives."""

    model_config = ConfigDict(frozen=True)


class ApiRequest(BaseModel):
    """Base of what the API takes; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ErrorAnswer(Answer):
    """Why there is no answer."""

    error: str


class RequestError(PruneGPTError):
    """A request that cannot be answered, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class Endpoint:
    """One entry.

    Args:
        path: below /api/v1, with {names} of path parts.
        handler: takes the dashboard, each part of the path by its name (a tuple in its annotation is all that it may
            be), as `asked` the query parameters, and as `posted` what a POST sends. Gives an
            `Answer`, or a response of another media type; runs in a thread. Its docstring is the entry's summary.
        media: of an answer that is no JSON.
    """

    def __init__(self, path: str, handler: Callable[..., "BaseModel | Response"], media: Sequence[str]) -> None:
        self.path, self.handler, self.media = path, handler, media
        self.summary = str(handler.__doc__).partition("\n")[0].removesuffix(".")
        hints = get_type_hints(handler, include_extras=True)
        self.gives: type[BaseModel] | None = None if issubclass(hints["return"], Response) else hints["return"]
        self.query: type[ApiRequest] | None = hints.get("asked")
        self.body: type[ApiRequest] | None = hints.get("posted")
        self.method = "POST" if self.body else "GET"
        parts = re.findall(r"{(\w+)}", path)
        self.choices: dict[str, tuple[str, ...]] = {
            name: getattr(hints[name], "__metadata__", ((),))[0] for name in parts
        }

    def route(self, dashboard: Dashboard) -> Route:
        async def answer(request: Request) -> Response:
            try:
                given: dict[str, Any] = dict(request.path_params)
                query = _query(self.query or ApiRequest, request)
                given |= {"asked": query} if self.query else {}
                given |= {"posted": await _body(self.body, request)} if self.body else {}
                return await run_in_threadpool(self._answer, dashboard, given)
            except Exception as error:
                return refusal(error, dashboard.root)

        return Route(PREFIX + self.path, answer, methods=[self.method])

    def _answer(self, dashboard: Dashboard, given: dict[str, Any]) -> Response:
        for part, valid in self.choices.items():
            if valid and given[part] not in valid:
                raise RequestError(404, unknown(part, str(given[part]), valid))
        found = self.handler(dashboard, **given)
        return found if isinstance(found, Response) else reply(found)

    def described(self, references: Any) -> dict[str, Any]:
        """The operation as OpenAPI has it; `references` are those of `models_json_schema`."""
        problem = {"application/json": {"schema": references[ErrorAnswer, "serialization"]}}
        plain: dict[str, Any] = {
            media: {"schema": {} if media == "application/json" else {"type": "string"}} for media in self.media
        }
        given = {"application/json": {"schema": references[self.gives, "serialization"]}} if self.gives else plain
        parameters: list[dict[str, Any]] = []
        for name, valid in self.choices.items():
            schema = {"type": "string", **({"enum": list(valid)} if valid else {})}
            parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
        asked = self.query.model_json_schema()["properties"] if self.query else {}
        for name, field in asked.items():
            described = {"name": name, "in": "query", "required": False, "description": field.pop("description", "")}
            parameters.append({**described, "schema": field})
        body: dict[str, Any] = {}
        if self.body:
            marked = {"type": "string", "enum": ["1"]}
            parameters.append({"name": ACTION_HEADER, "in": "header", "required": True, "schema": marked})
            posted = {"schema": references[self.body, "validation"]}
            body = {"requestBody": {"required": True, "content": {"application/json": posted}}}
        errors = {**_ERRORS, **(_POST_ERRORS if self.body else {})}
        return {
            "operationId": re.sub(r"\W+", "_", f"{self.method.lower()}{self.path}").strip("_"),
            "summary": self.summary,
            "tags": [self.path.split("/")[1]],
            "parameters": parameters,
            **body,
            "responses": {
                "200": {"description": "as asked", "content": given},
                **{code: {"description": text, "content": problem} for code, text in errors.items()},
            },
        }


ENDPOINTS: list[Endpoint] = []  # every entry, in the order of the reference


def endpoint(path: str, *media: str) -> Callable[[H], H]:
    """Makes a function an entry of the API; see `Endpoint`."""

    def entered(handler: H) -> H:
        ENDPOINTS.append(Endpoint(path, handler, media or ("application/json",)))
        return handler

    return entered


def document() -> dict[str, Any]:
    """The OpenAPI description of all entries."""
    models: list[tuple[type[BaseModel], Any]] = [(ErrorAnswer, "serialization")]
    models += [(entry.gives, "serialization") for entry in ENDPOINTS if entry.gives]
    models += [(entry.body, "validation") for entry in ENDPOINTS if entry.body]
    references, schemas = models_json_schema(list(dict.fromkeys(models)), ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for entry in ENDPOINTS:
        paths.setdefault(PREFIX + entry.path, {})[entry.method.lower()] = entry.described(references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "PruneGPT",
            "version": __version__,
            "description": "Sweeps, trials, curves and tables of one root. Sparsities are between 0 and 1, times "
            "are seconds since the epoch, and a number that is not finite is null.",
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}, {"cookie": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.get("$defs", {}),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": "prunegpt-PORT"},
            },
        },
    }


def reply(answer: BaseModel, status: int = 200) -> Response:
    """An answer as JSON; what is not finite is null."""
    return Response(answer.model_dump_json(by_alias=True), status_code=status, media_type="application/json")


def attachment(name: str) -> dict[str, str]:
    """The header that makes a browser save an answer under a name."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-=+@") else "_" for letter in name)
    return {"Content-Disposition": f'attachment; filename="{plain}"'}


def refusal(error: Exception, root: Root) -> Response:
    """The response to an error about a root; a defect of ours is raised again."""
    if isinstance(error, RequestError):
        return reply(ErrorAnswer(error=str(error)), error.status)
    if isinstance(error, ValidationError):
        told = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()]
        return reply(ErrorAnswer(error="; ".join(told)), 400)
    if isinstance(error, PruneGPTError):
        missing = isinstance(error, StoreError | ReportError | UnknownPartError)
        message = root.located(str(error), always=True)
        return reply(ErrorAnswer(error=message), 404 if missing else 409 if isinstance(error, LaunchError) else 400)
    raise error


def _query(kind: type[ApiRequest], request: Request) -> ApiRequest:
    given: dict[str, Any] = {}
    for name in request.query_params:
        values = request.query_params.getlist(name)
        many = name in kind.model_fields and "list" in str(kind.model_fields[name].annotation)
        if len(values) > 1 and not many:
            raise RequestError(400, f"{name} may be given once; it is given {len(values)} times.")
        given[name] = values if many else values[0]
    return kind.model_validate(given)


async def _body(kind: type[ApiRequest], request: Request) -> ApiRequest:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RequestError(415, "what is posted must be JSON, with the header Content-Type: application/json.")
    try:
        return kind.model_validate_json(await received(request, _LARGEST_BODY))
    except intake.Rejected as error:
        raise RequestError(error.status, str(error)) from error

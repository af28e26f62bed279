"""What an entry of the API is: a path, what it takes, what it gives. Routes and the OpenAPI page are made from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prunegpt.errors import PruneGPTError, ReportError, StoreError, UnknownPartError
from prunegpt.web.dashboard import Dashboard

PREFIX = "/api/v1"
_LARGEST_BODY = 1 << 20  # bytes


class Answer(BaseModel):
    """Base of what the API gives."""

    model_config = ConfigDict(frozen=True)


class Asked(BaseModel):
    """Base of what the API takes; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Nothing(Asked):
    """Takes nothing."""


class Problem(Answer):
    """Why there is no answer."""

    error: str


class Refused(PruneGPTError):
    """A request that cannot be answered, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True)
class Call:
    """One request, checked."""

    path: Mapping[str, str]
    query: Any  # of the type the endpoint says
    body: Any  # likewise


@dataclass(frozen=True)
class Endpoint:
    """One entry.

    Args:
        path: below /api/v1, with {names} of path parts.
        handler: gives an `Answer`, or a response of another media type; runs in a thread.
        summary: one line for the reference.
        gives: the answer's type; None where it is no JSON.
        query: what may stand behind the question mark.
        body: what is posted; None for GET.
        media: of an answer that is no JSON.
    """

    path: str
    handler: Callable[[Dashboard, Call], "BaseModel | Response"]
    summary: str
    gives: type[BaseModel] | None = None
    query: type[Asked] = Nothing
    body: type[Asked] | None = None
    media: tuple[str, ...] = ("application/json",)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # path part -> all it may be

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"

    def route(self, dashboard: Dashboard) -> Route:
        async def answer(request: Request) -> Response:
            try:
                call = Call(request.path_params, _query(self.query, request), await _body(self.body, request))
                return await run_in_threadpool(self._answer, dashboard, call)
            except Exception as error:
                return refusal(error)

        return Route(PREFIX + self.path, answer, methods=[self.method])

    def _answer(self, dashboard: Dashboard, call: Call) -> Response:
        for part, valid in self.choices.items():
            if call.path[part] not in valid:
                raise Refused(404, f"{part} must be one of {', '.join(valid)}, but got {call.path[part]!r}.")
        found = self.handler(dashboard, call)
        return found if isinstance(found, Response) else reply(found)


def reply(answer: BaseModel, status: int = 200) -> Response:
    """An answer as JSON; what is not finite is null."""
    return Response(answer.model_dump_json(by_alias=True), status_code=status, media_type="application/json")


def refusal(error: Exception) -> Response:
    """What is told of an error; one that is ours to mend is raised again."""
    if isinstance(error, Refused):
        return reply(Problem(error=str(error)), error.status)
    if isinstance(error, ValidationError):
        told = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()]
        return reply(Problem(error="; ".join(told)), 400)
    if isinstance(error, StoreError | ReportError | UnknownPartError):
        return reply(Problem(error=str(error)), 404)
    if isinstance(error, PruneGPTError):
        return reply(Problem(error=str(error)), 400)
    raise error


def _query(kind: type[Asked], request: Request) -> Asked:
    given: dict[str, Any] = {}
    for name in request.query_params:
        values = request.query_params.getlist(name)
        many = name in kind.model_fields and "list" in str(kind.model_fields[name].annotation)
        if len(values) > 1 and not many:
            raise Refused(400, f"{name} may be given once, but is given {len(values)} times.")
        given[name] = values if many else values[0]
    return kind.model_validate(given)


async def _body(kind: type[Asked] | None, request: Request) -> Asked | None:
    if kind is None:
        return None
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "what is posted must be JSON, with the header Content-Type: application/json.")
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > _LARGEST_BODY:
            raise Refused(413, f"what is posted may have {_LARGEST_BODY} bytes at most.")
    return kind.model_validate_json(data)

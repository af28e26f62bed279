"""The OpenAPI 3.1 description of the API, made from its entries."""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from prunegpt import __version__
from prunegpt.web.endpoint import PREFIX, Answer, Asked, Endpoint, Problem
from prunegpt.web.security import ACTION_HEADER

_REFERENCE = "#/components/schemas/{model}"
_GET_ERRORS = {"400": "what is asked for is not understood", "404": "there is no such thing, or nothing to show yet"}
_LOCKED = {"401": "the token is missing or wrong", "403": "another host or origin, or a path outside the root"}
_POST_ERRORS = {"409": "cannot be done now", "413": "too long", "415": "not JSON"}


def describe(entries: Sequence[Endpoint]) -> dict[str, Any]:
    """The whole document."""
    models: list[tuple[type[BaseModel], Any]] = [(Problem, "serialization")]
    models += [(entry.gives, "serialization") for entry in entries if entry.gives]
    models += [(entry.body, "validation") for entry in entries if entry.body]
    keys, schemas = models_json_schema(list(dict.fromkeys(models)), ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for entry in entries:
        paths.setdefault(PREFIX + entry.path, {})[entry.method.lower()] = _operation(entry, keys)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "PruneGPT",
            "version": __version__,
            "description": "Sweeps, trials, curves and tables of one root. Shares of zeros lie between 0 and 1, times "
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


def _operation(entry: Endpoint, keys: Any) -> dict[str, Any]:
    parameters = [_path_part(name, entry) for name in re.findall(r"{(\w+)}", entry.path)]
    parameters += _query(entry.query)
    errors = {**_GET_ERRORS, **_LOCKED, **(_POST_ERRORS if entry.body else {})}
    problem = {"application/json": {"schema": keys[Problem, "serialization"]}}
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{entry.method.lower()}{entry.path}").strip("_"),
        "summary": entry.summary,
        "tags": [entry.path.split("/")[1]],
        "parameters": parameters,
        "responses": {
            "200": {"description": "as asked", "content": _content(entry, keys)},
            **{code: {"description": text, "content": problem} for code, text in errors.items()},
        },
    }
    if entry.body:
        parameters.append(
            {"name": ACTION_HEADER, "in": "header", "required": True, "schema": {"type": "string", "enum": ["1"]}}
        )
        schema = keys[entry.body, "validation"]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _content(entry: Endpoint, keys: Any) -> dict[str, Any]:
    if entry.gives is not None:
        return {"application/json": {"schema": keys[entry.gives, "serialization"]}}
    return {media: {"schema": {} if media == "application/json" else {"type": "string"}} for media in entry.media}


def _path_part(name: str, entry: Endpoint) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if name in entry.choices:
        schema["enum"] = list(entry.choices[name])
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query(kind: type[Asked]) -> list[dict[str, Any]]:
    schema = kind.model_json_schema()
    required = schema.get("required", ())
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "description": field.pop("description", ""),
            "schema": field,
        }
        for name, field in schema.get("properties", {}).items()
    ]


class Document(Answer):
    """The document itself."""

    openapi: str
    info: dict[str, Any]
    servers: list[dict[str, Any]]
    security: list[dict[str, Any]]
    paths: dict[str, Any]
    components: dict[str, Any]

"""What fields take of clients, checked."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

import graphql
from pydantic import BeforeValidator, Field

from prunegpt.tracking.endpoint.hosted import SweepState
from prunegpt.tracking.endpoint.intake import ClientMessage, Rejected
from prunegpt.tracking.run_path import RunPath

ENTITY = "local"
PROJECT = "prunegpt"

FieldText = Annotated[str, Field(max_length=256)]


class FieldArguments(ClientMessage):
    """What the fields of the schema take: each some of it."""

    entity_name: FieldText = ""
    project_name: FieldText = ""
    model_name: FieldText = ""
    run_name: FieldText = ""
    id: FieldText = ""
    name: FieldText = ""
    display_name: FieldText = ""
    group_name: FieldText = ""
    sweep: FieldText = ""
    sweep_name: FieldText = ""
    host: FieldText = ""
    state: Annotated[SweepState, BeforeValidator(lambda state: str(state).upper())] | None = None
    config: str = ""
    summary_metrics: str = ""
    run_state: str = ""
    prior_runs_filters: str = ""
    controller: str = ""
    scheduler: str = ""
    files: Annotated[list[FieldText], Field(max_length=10_000)] | None = None
    job_type: FieldText = ""
    job_program: str = Field("", max_length=4096)
    notes: str = Field("", max_length=100_000)
    description: str = Field("", max_length=100_000)
    tags: Annotated[tuple[FieldText, ...], Field(max_length=1000)] | None = None
    title: str = Field("", max_length=10_000)
    text: str = Field("", max_length=100_000)
    severity: FieldText = "INFO"

    @classmethod
    def read(cls, given: Any) -> Self:
        """Arguments, without those whose variables were not given.

        Raises:
            Rejected: they are something else.
        """
        if isinstance(given, Mapping):
            given = {name: value for name, value in given.items() if value not in (graphql.Undefined, None)}
        return cls.of(given, "input")

    @property
    def project(self) -> RunPath:
        return RunPath(self.entity_name or ENTITY, self.project_name or self.model_name or PROJECT, "")


def run_at(project: RunPath, name: Any) -> RunPath:
    """A run of a project.

    Raises:
        Rejected: a name is none.
    """
    for part in (project.entity, project.project, name):
        if not isinstance(part, str) or len(part) > 256 or "\0" in part:
            raise Rejected(f"a name must be a text of 256 characters at most, without NUL, got {part!r:.80}.")
    return RunPath(project.entity, project.project, name)

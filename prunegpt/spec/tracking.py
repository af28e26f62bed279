"""Experiment tracking of a sweep."""

from typing import Any, Literal

from pydantic import Field, model_validator

from prunegpt.spec.part import Part


class WandbSpec(Part):
    """Logging to Weights & Biases. A plain string means `{mode: STRING}`."""

    mode: Literal["off", "offline", "online"] = Field(
        "off", description="off, offline (kept, to be sent later), online"
    )
    project: str = Field("prunegpt", description="project of the runs")
    entity: str | None = Field(None, description="W&B team or user (default: the client's)")
    group: str | None = Field(None, description="group of the runs (default: the sweep's name)")
    tags: tuple[str, ...] = Field((), description="tags of every run")

    @model_validator(mode="before")
    @classmethod
    def _string(cls, value: Any) -> Any:
        if value is False:  # what YAML makes of a bare `off`
            return {"mode": "off"}
        if isinstance(value, str):
            return {"mode": value}
        if isinstance(value, dict) and value.get("mode") is False:
            return {**value, "mode": "off"}
        return value


class TrackingSpec(Part):
    """Trackers beside the store. `{wandb: online, project: NAME}` may be written flat."""

    wandb: WandbSpec = Field(WandbSpec(), description="Weights & Biases")

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        flat = {key: item for key, item in value.items() if key in WandbSpec.model_fields and key != "mode"}
        if not flat:
            return value
        given = value.get("wandb", "online")
        nested = given if isinstance(given, dict) else {"mode": given}
        return {**{key: item for key, item in value.items() if key not in flat}, "wandb": {**flat, **nested}}

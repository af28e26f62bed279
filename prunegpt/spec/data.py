"""What a spec says of models and datasets. Every field carries its unit and meaning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from prunegpt.builtin import PREFIX
from prunegpt.errors import unknown
from prunegpt.registry import CALIBRATION_MODES, Registry
from prunegpt.spec.part import Part


def known(*registries: Registry) -> AfterValidator:
    """Takes the name of a part of one of these kinds."""

    def check(name: str) -> str:
        if any(name in registry for registry in registries):
            return name
        names = [valid for registry in registries for valid in registry.names()]
        kind = " or ".join(registry.kind for registry in registries)
        raise ValueError(unknown(kind, name, names))

    return AfterValidator(check)


def many(value: Any) -> Any:
    """A single value where a list is expected means a list of one."""
    return (value,) if isinstance(value, (str, int)) else value


def some(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """Takes a list that is not empty."""
    if not value:
        raise ValueError("a list must name at least one value here; it is empty. Fill it or remove the key.")
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(many)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy and torch both take


class ModelSpec(Part):
    """The model a trial starts from. A plain string means `{source: STRING}`."""

    source: str = Field(description="hub id, local transformers folder, .gguf file, or builtin:NAME", min_length=1)
    revision: str | None = Field(None, description="hub branch, tag or commit")
    tokenizer: str | None = Field(
        None, description="hub id or folder of the tokeniser, where it is not the model's own"
    )
    tokenizer_revision: str | None = Field(None, description="hub branch, tag or commit of that tokeniser")
    trust_remote_code: bool = Field(False, description="let the model's repository run its own code")
    code_revision: str | None = Field(
        None, description="hub branch, tag or commit of that code, where it is in another repository than the model"
    )
    weights: Literal["stored", "random"] = Field(
        "stored", description="random: drawn by the trial's seed, the control of training from scratch"
    )
    label: str | None = Field(
        None, description="name shown in tables (default: the source, and whether its weights are random)"
    )

    @property
    def name(self) -> str:
        """What tables call it."""
        own = Path(self.source).name.removeprefix(PREFIX)
        return self.label or (f"{own}, random weights" if self.weights == "random" else own)


class DataSpec(Part):
    """The text."""

    path: str | None = Field(
        None,
        description="hub id, builtin:NAME, a folder with SPLIT.txt/.jsonl/.csv/.parquet, maybe compressed, one that "
        "`datasets` saved, or one such file",
    )
    name: str | None = Field(None, description="configuration of a hub dataset, such as wikitext-2-raw-v1")
    revision: str | None = Field(None, description="hub branch, tag or commit")
    files: Mapping[str, Annotated[Names, AfterValidator(some)]] | None = Field(
        None, description="split -> files of one of these kinds, instead of path", min_length=1
    )
    text_column: str | None = Field(
        None, description="column of the text, a.b inside a mapping; default: text, or the only column of strings"
    )
    messages: str | None = Field(
        None,
        description="column of chat messages, each row a list of {role, content}, in place of text_column; rows become "
        "text by the tokeniser's chat template",
    )
    train_split: str = Field("train", description="the split that is trained on")
    block_size: int = Field(
        1024,
        ge=2,
        description="sequence length in tokens, for training and evaluation windows (default: 1024, or the model's "
        "positions where it has fewer; for a stage's own text the trial's",
    )
    max_train_blocks: int | None = Field(None, ge=1, description="train on the first N sequences only")
    tokens: int | None = Field(None, ge=1, description="tokens of the training split, for estimates without the text")

    @model_validator(mode="after")
    def _one_source(self) -> "DataSpec":
        if self.path is not None and self.files is not None:
            raise ValueError("data must name either path or files; it has both. Remove one.")
        if self.messages is not None and self.text_column is not None:
            raise ValueError("data must name either text_column or messages; it has both. Remove one.")
        return self


class CalibrationSpec(Part):
    """Calibration data of activation-aware methods."""

    windows: int = Field(128, ge=1, description="number of windows")
    length: int | None = Field(None, ge=2, description="tokens per window (default: data.block_size)")
    seed: Seed = Field(0, description="draws the windows")
    mode: Annotated[str, known(CALIBRATION_MODES)] = Field("random", description="how windows are drawn")
    bos: bool = Field(False, description="begin each window with the tokeniser's bos token")
    split: str | None = Field(None, description="dataset split (default: data.train_split)")
    data: DataSpec | None = Field(None, description="calibration dataset (default: the trial's data)")

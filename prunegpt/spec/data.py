"""What a spec says of models and datasets. Every field carries its unit and meaning."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from prunegpt.builtin import PREFIX
from prunegpt.errors import listed, unknown
from prunegpt.registry import CALIBRATION_MODES, Registry
from prunegpt.spec.part import Part

_TOLERANCE = 1e-6  # of the sum of weights


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
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]  # beyond, distributions are of one token, or of all alike
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy and torch both take


class ModelSpec(Part):
    """The model a trial starts from. A plain string means `{source: STRING}`."""

    BARE = "source"

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
    attention: Literal["sdpa", "eager"] | None = Field(
        None, description="how attention is computed (default: sdpa where the family has it, else eager)"
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
    generate: "GenerateSpec | None" = Field(
        None, description="text that the trial's model writes, in place of path: for training stages and calibration"
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
        own = {"path": self.path, "files": self.files, "text_column": self.text_column, "messages": self.messages}
        beside = [name for name, value in own.items() if value is not None]
        if self.generate is not None and beside:
            raise ValueError(f"data is either generated or read; it has generate and {listed(beside)}. Remove one.")
        if self.messages is not None and self.text_column is not None:
            raise ValueError("data must name either text_column or messages; it has both. Remove one.")
        return self


class GenerateSpec(Part):
    """Text that the model a trial starts from writes, as it is before any stage; sampled once and kept in the root."""

    documents: int = Field(128, ge=1, description="number of documents")
    tokens: int = Field(512, ge=1, description="tokens written per document at most; an end-of-text token ends it")
    prompts: DataSpec | None = Field(
        None,
        description="dataset whose rows begin the documents, in order and again from the first; chat messages up to "
        "the last response (default: the bos token alone)",
    )
    split: str = Field("train", description="split of the prompts")
    prompt_tokens: int = Field(32, ge=1, description="tokens of a row of plain text that begin a document, at most")
    temperature: Temperature = Field(1.0, description="divides the logits")
    top_k: int = Field(0, ge=0, description="sample from the k most probable tokens only; 0: from all")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the most probable tokens of this mass only")
    seed: Seed = Field(0, description="draws the tokens")
    key: str = Field("", description="of what is written; filled in by the plan")


class SourceSpec(Part):
    """One of several sources of calibration windows."""

    data: DataSpec = Field(description="dataset")
    split: str | None = Field(None, description="dataset split (default: data.train_split)")
    mode: Annotated[str, known(CALIBRATION_MODES)] | None = Field(
        None, description="how windows are drawn (default: calibration.mode)"
    )
    weight: float | None = Field(
        None, gt=0, le=1, description="share of the windows; all of a mix sum to 1 (default: equal shares)"
    )


class CalibrationPart(NamedTuple):
    """The windows that one source gives."""

    data: DataSpec
    split: str
    mode: str
    windows: int


class CalibrationSpec(Part):
    """Calibration data of activation-aware methods."""

    windows: int = Field(128, ge=1, description="number of windows")
    length: int | None = Field(None, ge=2, description="tokens per window (default: data.block_size)")
    seed: Seed | Literal["trial"] = Field(
        0, description="draws the windows; `trial` is each trial's own seed, so that several seeds have several draws"
    )
    mode: Annotated[str, known(CALIBRATION_MODES)] = Field("random", description="how windows are drawn")
    bos: bool = Field(False, description="begin each window with the tokeniser's bos token")
    split: str | None = Field(None, description="dataset split (default: data.train_split)")
    data: DataSpec | None = Field(None, description="calibration dataset (default: the trial's data)")
    sources: tuple[SourceSpec, ...] = Field(
        (), description="several datasets, mixed by their weights, in place of data"
    )

    @property
    def parts(self) -> tuple[CalibrationPart, ...]:
        """Its sources, each with its number of windows; none before the plan has filled in a dataset.

        The numbers are the weights' shares, rounded so that they sum to `windows` (largest remainder).
        """
        if not self.sources:
            split = self.split or (self.data.train_split if self.data else "")
            return (CalibrationPart(self.data, split, self.mode, self.windows),) if self.data else ()
        shares = [self.windows * (source.weight or 1 / len(self.sources)) for source in self.sources]
        counts = [math.floor(share + _TOLERANCE) for share in shares]
        by_rest = sorted(range(len(shares)), key=lambda place: (counts[place] - shares[place], place))
        for place in by_rest[: self.windows - sum(counts)]:
            counts[place] += 1
        return tuple(
            CalibrationPart(source.data, source.split or source.data.train_split, source.mode or self.mode, count)
            for source, count in zip(self.sources, counts, strict=True)
        )

    @model_validator(mode="after")
    def _drawn(self) -> "CalibrationSpec":
        modes = {source.mode or self.mode for source in self.sources} or {self.mode}
        if self.seed == "trial" and modes == {"first"}:
            raise ValueError(
                "a calibration seed of `trial` needs windows that a seed draws, got mode first. Use random, or "
                "shuffled for the same windows in another order."
            )
        return self

    @model_validator(mode="after")
    def _whole_mix(self) -> "CalibrationSpec":
        if not self.sources:
            return self
        if self.data is not None or self.split is not None:
            raise ValueError("calibration reads either data or sources; it has both. Put data and split into sources.")
        weights = [source.weight for source in self.sources if source.weight is not None]
        if weights and len(weights) < len(self.sources):
            raise ValueError("weights belong to all sources or to none; some have none. Give each its share.")
        if weights and abs(math.fsum(weights) - 1) > _TOLERANCE:
            raise ValueError(f"the weights of sources must sum to 1, got {math.fsum(weights):g}.")
        if not all(part.windows for part in self.parts):
            raise ValueError(
                f"every source must give at least one of the {self.windows} windows. Use more windows, or leave the "
                f"source out."
            )
        return self


DataSpec.model_rebuild()

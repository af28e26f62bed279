"""What can be known of a model and a text without loading either: fingerprint, tensors, layers, vocabulary."""

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prunegpt.builtin import BUILTIN_MODELS, BUILTIN_TEXTS, is_builtin
from prunegpt.errors import DataError, ModelError, unknown
from prunegpt.planning import hub
from prunegpt.planning.fingerprint import Files, digest
from prunegpt.spec.schema import DataSpec, ModelSpec

TEXT_SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class ModelFacts:
    """A model seen from outside. `unchecked` says in words what could not be known."""

    source: str
    fingerprint: str
    builtin: bool = False
    config: Mapping[str, Any] | None = None
    tensors: Mapping[str, tuple[int, ...]] | None = None
    tokenizer_file: Path | None = None
    unchecked: str | None = None

    @cached_property
    def vocabulary(self) -> Mapping[str, int] | None:
        """Token -> id, from tokenizer.json."""
        if self.tokenizer_file is None or not self.tokenizer_file.exists():
            return None
        content = json.loads(self.tokenizer_file.read_text(encoding="utf-8"))
        tokens = content.get("model", {}).get("vocab")
        if not isinstance(tokens, Mapping):
            return None
        return {**tokens, **{item["content"]: item["id"] for item in content.get("added_tokens", [])}}

    @property
    def vocabulary_size(self) -> int | None:
        """Rows of the embedding."""
        return self.config.get("vocab_size") if self.config else None


def model_facts(model: ModelSpec, files: Files) -> ModelFacts:
    """Looks at a model without loading it.

    Raises:
        ModelError: the folder or file is missing or is no model; a built-in name is unknown.
    """
    source = model.source
    if is_builtin(source):
        if source not in BUILTIN_MODELS:
            raise ModelError(unknown("built-in model", source, BUILTIN_MODELS))
        builtin = BUILTIN_MODELS[source]
        config = {"model_type": "gpt2", "vocab_size": builtin.vocabulary}
        return ModelFacts(source, digest([source, asdict(builtin), BUILTIN_TEXTS[builtin.pretraining.text].version]), True, config, builtin.matrices)
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"a GGUF model must be an existing file, but {path} is not there. Check the path.")
        return ModelFacts(source, files.hash(path))
    if path.is_dir():
        return _folder(source, path, files)
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise ModelError(f"a model must be a hub id, an existing folder or a .gguf file, but {path} is not there.")
    return _hub(model)


def _folder(source: str, path: Path, files: Files) -> ModelFacts:
    config = path / "config.json"
    if not config.is_file():
        raise ModelError(f"a model folder must hold config.json, but {path} does not. Save it with save_pretrained.")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            f"a model folder must hold *.safetensors, but {path} does not (pickle files are never loaded). "
            f"Convert it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(..., safe_serialization=True)."
        )
    tensors: dict[str, tuple[int, ...]] = {}
    for file in weights:
        tensors |= _header(file)
    extra = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
    return ModelFacts(
        source,
        digest(files.hash_all([config, *weights, *extra])),
        config=_json(config),
        tensors=tensors,
        tokenizer_file=path / "tokenizer.json" if (path / "tokenizer.json").is_file() else None,
    )


def _hub(model: ModelSpec) -> ModelFacts:
    source = model.source
    try:
        revision = hub.commit(source, model.revision)
    except hub.Unreachable as error:
        return ModelFacts(source, f"{source}@{model.revision or 'unresolved'}", unchecked=str(error))
    config = hub.cached_file(source, revision, "config.json")
    tokenizer = hub.cached_file(source, revision, "tokenizer.json")
    return ModelFacts(
        source,
        f"{source}@{revision}",
        config=_json(config) if config else None,
        tokenizer_file=tokenizer,
        unchecked=None if config else f"model {source}: its config.json could not be fetched",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"config.json must be JSON, but {path} is not: {error}. Save the model again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"config.json must be a JSON object, but {path} holds {type(content).__name__}.")
    return content


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes from a safetensors header."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is cut")
            header = json.loads(file.read(length))
        end = max((item["data_offsets"][1] for name, item in header.items() if name != "__metadata__"), default=0)
        if path.stat().st_size != 8 + length + end:
            raise ValueError(f"it should have {8 + length + end} bytes but has {path.stat().st_size}")
        return {name: tuple(item["shape"]) for name, item in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, struct.error, AttributeError) as error:
        raise ModelError(
            f"weights must be whole safetensors files, but {path} is not: {error}. Fetch it again."
        ) from error


def split_files(data: DataSpec, base: Path | None = None) -> dict[str, tuple[Path, ...]] | None:
    """Split -> local files, or None where the text is built in or on the hub. `base`: the spec's folder.

    Raises:
        DataError: a file is missing, or a folder holds no text.
    """
    if data.files is not None:
        return {split: tuple(_local(name, base) for name in names) for split, names in data.files.items()}
    if data.path is None:
        raise DataError("data must name its text: `path` (hub id, folder, file or builtin:NAME) or `files`.")
    if is_builtin(data.path):
        if data.path not in BUILTIN_TEXTS:
            raise DataError(unknown("built-in text", data.path, BUILTIN_TEXTS))
        return None
    path = _find(data.path, base)
    if path is not None and path.is_dir():
        found: dict[str, tuple[Path, ...]] = {
            file.stem: (file,) for file in sorted(path.iterdir()) if file.suffix in TEXT_SUFFIXES
        }
        if not found:
            raise DataError(f"a text folder must hold SPLIT{'/SPLIT'.join(TEXT_SUFFIXES)}, but {path} holds none.")
        return found
    if path is not None:
        return {data.train_split: (path,)}
    if Path(data.path).suffix in TEXT_SUFFIXES or Path(data.path).is_absolute() or data.path.startswith("."):
        raise DataError(f"text must be an existing file, folder or hub id, but {data.path} is not there.")
    return None


def _find(name: str, base: Path | None) -> Path | None:
    """From the working directory, else from the spec's folder."""
    path = Path(name).expanduser()
    for candidate in (path, *([base / path] if base and not path.is_absolute() else [])):
        if candidate.exists():
            return candidate.absolute()
    return None


def _local(name: str, base: Path | None) -> Path:
    path = _find(name, base)
    if path is None or not path.is_file():
        raise DataError(f"a data file must exist, but {name} is not there. Paths count from here or the spec's folder.")
    return path


def data_fingerprint(data: DataSpec, split: str, files: Files, base: Path | None = None) -> tuple[str, str | None]:
    """What stands for a split of a text in keys, and what could not be checked, in words.

    Raises:
        DataError: the split does not exist.
    """
    local = split_files(data, base)
    if local is not None:
        if split not in local:
            raise DataError(f"data has no split {split!r}. Valid: {', '.join(local)}. Name it under data.files.")
        return digest([data.text_column, files.hash_all(local[split])]), None
    path = str(data.path)
    if is_builtin(path):
        text = BUILTIN_TEXTS[path]
        if split not in text.splits:
            raise DataError(f"{path} has no split {split!r}. Valid: {', '.join(text.splits)}.")
        return digest([path, text.version, split]), None
    identity = [path, data.name, data.text_column, split]
    try:
        return digest([*identity, hub.commit(path, data.revision, "dataset")]), None
    except hub.Unreachable as error:
        return digest([*identity, data.revision or "unresolved"]), str(error)

"""Resolves the names of models in a spec to local files. No torch."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from prunegpt.builtin import is_builtin
from prunegpt.errors import ModelError, listed
from prunegpt.planning import hub
from prunegpt.root import read_json
from prunegpt.spec.schema import ModelSpec
from prunegpt.spec.shapes import TEXT_PARTS

_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
_CONFIG = "config.json"
DEQUANTISED = ("mxfp4", "fp8")  # by transformers, on any device
_QUANTISERS = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
WEIGHTS = "model.safetensors"
FLOAT32, _DEQUANTISED = "float32", ", and were dequantised when they were loaded"
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
STORED = {"bfloat16": "BF16", "float16": "F16"}  # as safetensors call them
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LISTED = 5  # names in one message
_SAMPLED = 64  # rows of a matrix that zeros are counted in
MASKS = "masks.safetensors"  # of a pruned model, beside its weights
PACKED = "packed.safetensors"  # the weights of an export without their zeros, in place of WEIGHTS
ABOUT = "export.json"  # of a model that was exported: where it came from
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
# Files in a model folder that no part of transformers reads: other formats, and documentation.
_UNREAD = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".gguf", ".md", ".png", ".jpg", ".py", ".log")
# Beside a .gguf file, which may be among other files: what a tokeniser or a config is read from.
_BESIDE = ("*token*", "*vocab*", "merges*", "*.model", "*.spm", "*.tiktoken", "*config*.json", "*.codes")
_VOCABULARY = ("*token*", "*vocab*", "*.model", "*.spm", "*.tiktoken", "*.codes", "tekken.json")
_SETTINGS = frozenset({TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json"})
_BYTES = frozenset({"ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"})  # of bytes or signs
_AGAIN = "Copy or download it again."
_CONVERT = (
    "Convert it where you trust it: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW) writes safetensors."
)


def find_local(name: str, base: Path | None = None) -> Path | None:
    """An existing file or folder, from the working directory, else from `base`, the spec's folder; absolute."""
    try:
        path = Path(name).expanduser()
        for candidate in (path, *([base / path] if base and not path.is_absolute() else [])):
            if candidate.exists():
                return candidate.absolute()
    except (OSError, RuntimeError, ValueError):  # too long, no such home, NUL: nothing that can be there
        return None
    return None


def is_path(source: str) -> bool:
    """Whether a name can be no hub id."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source


def model_place(source: str, base: Path | None = None) -> Path | None:
    """The folder or .gguf file that a model is; None for a hub id.

    Args:
        source: not a built-in name.
        base: the spec's folder.

    Raises:
        ModelError: it is missing, or another kind of file.
    """
    here = find_local(source)
    path = here or find_local(source, base)
    if path and path.is_dir() and (here or (path / "config.json").is_file()):
        return path
    if source.lower().endswith(".gguf"):
        if path is None or not path.is_file():
            raise ModelError(f"GGUF model {source} does not exist. Check the path.")
        return path
    if path and path.is_file():
        raise ModelError(
            f"a model must be a hub id, a folder or a .gguf file; {source} is another kind of file. Give the folder "
            "that holds its config.json."
        )
    if is_path(source):
        raise ModelError(
            f"a model must be a hub id, an existing folder or a .gguf file; {source} is not there. Check the path."
        )
    return None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder that are loaded: one, or those that its index lists.

    Raises:
        ModelError: it has none, lacks some, has no config.json, or is an adapter to another model.
    """
    _check_whole(folder)
    for name in (WEIGHTS, PACKED):
        if (folder / name).is_file():
            return [folder / name]
    if (folder / _INDEX).is_file():
        return _shards(folder)
    if pickles := sorted(item.name for pattern in _PICKLES for item in folder.glob(pattern)):
        raise ModelError(
            f"weights must be stored as safetensors; {folder} has only pickled ones ({pickles[0]}), which can run code "
            f"when loaded and never are. {_CONVERT}"
        )
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    raise ModelError(
        f"a model's weights must be in {WEIGHTS}, or in files that {_INDEX} lists; {folder} has "
        f"{f'{listed(others, _LISTED)} without it' if others else 'none'}. Check that the copy or download is "
        f"complete{', or rename the file' if others else ''}."
    )


def _check_whole(folder: Path) -> None:
    """Raises ModelError where a folder is no model's: an adapter, or without config.json."""
    if (folder / _ADAPTER).is_file():
        raise _adapter(folder)
    if not (folder / _CONFIG).is_file():
        others = sorted(item.name for item in folder.iterdir())
        gguf = next(iter(sorted(folder.glob("*.gguf"))), None)
        below = next(iter(sorted(folder.glob(f"*/{_CONFIG}"))), None)
        inner = f"the file {gguf}" if gguf else f"the folder {below.parent}" if below else None
        hint = f"Give {inner} itself." if inner else "Give a folder that save_pretrained wrote."
        held = listed(others, _LISTED) if others else "nothing"
        raise ModelError(f"a model folder must hold config.json; {folder} holds {held}. {hint}")


def refuse_adapter(name: str, revision: str | None) -> None:
    """Raises ModelError where a hub repository holds an adapter, which transformers puts on a base model it names."""
    if hub.cached_file(name, revision, _ADAPTER):
        raise _adapter(name)


def _adapter(source: str | Path) -> ModelError:
    return ModelError(
        f"a model must be stored whole; {source} holds a PEFT adapter ({_ADAPTER}), whose base model is elsewhere. "
        "Merge them first: PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(NEW)."
    )


def _shards(folder: Path) -> list[Path]:
    """The files that the index of a model folder lists."""
    index = folder / _INDEX
    try:
        names = sorted({str(name) for name in read_json(index)["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{_INDEX} must be JSON with a weight_map; {index} is not: {error!r}. {_AGAIN}") from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(f"a model folder must hold all its weights; {folder} lacks {missing[0]}. {_AGAIN}")
    return [folder / name for name in names]


def quantised_by(config: Mapping[str, Any], folder: Path | None = None) -> str | None:
    """The method that a model's weights are quantised by; None where they are floating point.

    Args:
        config: config.json.
        folder: of a local model, where old tools leave a file of their own instead.
    """
    parts = {f" in its {name}": config.get(name) for name in TEXT_PARTS}
    for where, part in {"": config, **parts}.items():
        for name, kind in (("quantization_config", "bitsandbytes"), ("compression_config", "compressed-tensors")):
            if isinstance(part, Mapping) and isinstance(given := part.get(name), Mapping) and given:
                return str(given.get("quant_method") or kind) + where
    return next((kind for name, kind in _QUANTISERS.items() if folder and (folder / name).is_file()), None)


def quantised_problem(source: str | Path, method: str | None) -> str | None:
    """Why a quantised model cannot be pruned; None where its weights can be made floating point on any device."""
    if method is None or method in DEQUANTISED:
        return None
    return (
        f"weights must be floating point to be pruned; {source} is quantised ({method}). Use the model it was "
        "quantised from."
    )


def origin(model: ModelSpec) -> tuple[str, tuple[str, ...]]:
    """The dtype that a model's weights are stored in, and what was done to them while they were loaded, in words."""
    place = None if is_builtin(model.source) else model_place(model.source)
    if place is not None and place.is_file():
        return FLOAT32, (f"the weights of {place.name} are stored as GGUF{_DEQUANTISED}",)
    file = place / _CONFIG if place else hub.cached_file(model.source, model.revision, _CONFIG)
    config = read_json(file) if file and file.is_file() else {}
    if method := quantised_by(config, place):
        return FLOAT32, (f"the weights are stored as {method}{_DEQUANTISED}",)
    parts = [config, config.get("text_config") or {}]
    stored = [part.get(name) for part in parts for name in ("dtype", "torch_dtype")]
    return next((kind for kind in stored if kind in ("float16", "bfloat16")), FLOAT32), ()


def weights_on_disk(model: ModelSpec) -> tuple[int | None, str]:
    """Bytes of the files that hold a model's stored weights, and their dtype; None where they are not at hand."""
    place = model_place(model.source)
    if place is None and (config := hub.cached_file(model.source, model.revision, _CONFIG)):
        place = config.parent
    if place is None or place.is_file():
        return (place.stat().st_size if place else None), "gguf" if place else FLOAT32
    kind = quantised_by(read_json(place / _CONFIG), place) or origin(model)[0]
    return sum(file.stat().st_size for file in weight_files(place)), kind


def has_tokenizer(files: Iterable[Path]) -> bool:
    """Whether a vocabulary is among a model's files, or a tokeniser that needs none."""
    for file in files:
        if file.suffix == ".gguf" or (any(file.match(name) for name in _VOCABULARY) and file.name not in _SETTINGS):
            return True
        if file.name == TOKENIZER_CONFIG and read_json(file).get("tokenizer_class") in _BYTES:
            return True
    return False


def has_chat_template(tokenizer: str) -> bool | None:
    """Whether a tokeniser, located, has a template for chat messages; None where its files are not at hand."""
    place = Path(tokenizer)
    if is_builtin(tokenizer) or not place.is_dir():
        return False if is_builtin(tokenizer) else None
    if any(
        (place / name).exists() for name in ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
    ):
        return True
    settings = place / TOKENIZER_CONFIG
    return settings.is_file() and bool(read_json(settings).get("chat_template"))


def no_tokenizer(source: str | Path) -> str:
    """What is wrong with a model that has no tokeniser."""
    return (
        f"a tokeniser must have a vocabulary; {source} has no tokenizer.json or other tokeniser file. Name the "
        "tokeniser's own hub id or folder."
    )


def tokenizer_files(place: Path, *, code: bool) -> list[Path]:
    """The files that a tokeniser's folder keeps it in; a file is its own. Weights are not among them.

    Args:
        code: whether it may run its own.
    """
    if place.is_file():
        return [place]
    return [
        file for file in _read_in(place, code=code) if file.suffix != ".safetensors" and not file.name.endswith(_INDEX)
    ]


def model_files(model: ModelSpec, base: Path | None = None) -> list[Path]:
    """All local files that decide what a model and its tokeniser are; none of a hub id or a built-in name.

    That is everything in its folder that transformers may open, and beside a .gguf file what a tokeniser is read from.
    Weights are not among them where random ones are drawn. Where the model runs its own code it is everything in and
    below the folder: the code may read any of it.

    Raises:
        ModelError: as `model_place` and `weight_files`.
    """
    found: list[Path] = []
    place = None if is_builtin(model.source) else model_place(model.source, base)
    if place is not None and place.is_file():
        found = [place, *sorted({file for name in _BESIDE for file in place.parent.glob(name) if _counts(file, place)})]
    elif place is not None:
        if model.weights == "random":
            _check_whole(place)
            found = tokenizer_files(place, code=model.trust_remote_code)
        else:
            weights = weight_files(place)  # refuses a folder without
            found = sorted({*weights, *_read_in(place, code=model.trust_remote_code)})
    if model.tokenizer and not is_builtin(model.tokenizer) and (own := find_local(model.tokenizer, base)):
        found += tokenizer_files(own, code=model.trust_remote_code)
    return list(dict.fromkeys(found))


def _read_in(folder: Path, *, code: bool) -> list[Path]:
    """The files of a folder that transformers may read; with code, all in and below it: that may read any of them."""
    inside = folder.rglob("*") if code else (file for file in folder.iterdir() if file.suffix not in _UNREAD)
    return sorted(file for file in inside if file.is_file() and not _hidden(file.relative_to(folder)))


def _counts(file: Path, gguf: Path) -> bool:
    return file.is_file() and file != gguf and file.suffix not in (*_UNREAD, ".safetensors")


def _hidden(below: Path) -> bool:
    """Whether a path is of a cache: hidden, or compiled by Python."""
    return any(part.startswith(".") or part == "__pycache__" for part in below.parts)


def stored_kinds(files: Iterable[Path]) -> set[str]:
    """The dtypes of the tensors in safetensors files, as those call them, read from their headers; no weight is."""
    found: set[str] = set()
    for file in files:
        with safe_open(file, framework="numpy") as stored:
            found |= {stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
    return found


def tensor_shapes(folder: Path, files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor name of a folder's safetensors files, read from their headers; no weight is.

    Raises:
        ModelError: a file is cut or damaged, or holds weights that are not floating point, which the config does not
            explain.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    small: dict[str, str] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as stored:
                if file.name == PACKED:
                    listed = json.loads(stored.metadata()["prunegpt_packed"])["tensors"]
                    shapes |= {name: tuple(entry["shape"]) for name, entry in listed.items()}
                    continue
                slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118
                shapes |= {name: tuple(part.get_shape()) for name, part in slices.items()}
                kinds = {name: part.get_dtype() for name, part in slices.items() if name.endswith(".weight")}
                small |= {name: kind for name, kind in kinds.items() if kind not in _FLOATS}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"safetensors file {file} cannot be read: {error}. {_AGAIN}") from error
    if small and quantised_by(read_json(folder / _CONFIG), folder) is None:
        name, kind = next(iter(small.items()))
        raise ModelError(
            f"weights must be floating point to be pruned; {folder} stores {name} as {kind}, and no "
            "quantization_config explains it. Use the model it was quantised from."
        )
    return shapes


def stored_zeros(folder: Path) -> float:
    """About what share of the weights in a model's numbered layers is zero: of the first rows of every matrix there.

    Args:
        folder: a transformers folder with safetensors.
    """
    zeros, weights = 0, 0
    for file in weight_files(folder):
        with file.open("rb") as stored:
            header = json.loads(stored.read(int.from_bytes(stored.read(8), "little")))
            content = np.memmap(stored, np.uint8, "r", offset=stored.tell())
        for name, entry in header.items():
            if name.endswith("bias") or not any(step.isdigit() for step in name.split(".")):
                continue
            (begin, end), shape = entry["data_offsets"], entry["shape"]
            if len(shape) != 2 or begin == end:
                continue
            rows, columns = shape
            width = (end - begin) // (rows * columns)  # bytes of a weight
            bits = content[begin : begin + min(rows, _SAMPLED) * columns * width].view(f"u{width}")
            if entry["dtype"] in _FLOATS:
                bits = bits << np.uint8(1)  # without the sign: -0.0 is zero too
            zeros, weights = zeros + int((bits == 0).sum()), weights + bits.size
    return zeros / max(weights, 1)

"""What can be known of a model and a text without loading either: fingerprint, tensors, layers, vocabulary."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from prunegpt.builtin import BUILTIN_MODELS, BUILTIN_TEXTS, is_builtin
from prunegpt.errors import DataError, ModelError, listed, unknown
from prunegpt.planning import hub
from prunegpt.planning.corpus import TEXT_SUFFIXES, begins_with_mark, column_in, kind_of, local_splits
from prunegpt.planning.fingerprint import Files, digest
from prunegpt.planning.sources import (
    FLOAT32,
    STORED,
    TOKENIZER,
    TOKENIZER_CONFIG,
    find_local,
    is_path,
    model_files,
    model_place,
    origin,
    refuse_adapter,
    stored_kinds,
    tensor_shapes,
    tokenizer_files,
    weight_files,
)
from prunegpt.root import read_json
from prunegpt.spec.distilling import Shape
from prunegpt.spec.schema import DataSpec, ModelSpec
from prunegpt.spec.shapes import text_part

_READING = {suffix: suffix for suffix in TEXT_SUFFIXES} | {".txt": ".txt, lines with their ends"}  # part of keys


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """A model seen from outside. What is computed from it is cached for the object, which is all that is hashed."""

    model: ModelSpec  # local folders and files named absolutely
    source: str  # as the spec names it, for messages
    fingerprint: str  # what stands for weights and tokeniser in keys
    config: Mapping[str, Any] | None = None  # config.json
    tensors: Mapping[str, tuple[int, ...]] | None = None  # shapes as stored, by stored name
    tokenizer_file: Path | None = None  # tokenizer.json
    files: tuple[Path, ...] = ()  # all local files that the fingerprint stands for
    unchecked: str | None = None  # what could not be known, in words

    @property
    def builtin(self) -> bool:
        return is_builtin(self.source)

    @cached_property
    def stored(self) -> str:
        """The dtype of its weights, where all are bfloat16 or all float16; float32 of any other.

        Of a model of the hub its config says it, whether its files are here or not: a plan must not depend on that.
        """
        if self.builtin or self.model.weights == "random":
            return FLOAT32
        said, _ = origin(self.model)
        place = Path(self.model.source)
        plain = said != FLOAT32 and place.is_dir()
        return FLOAT32 if plain and stored_kinds(weight_files(place)) != {STORED[said]} else said

    @cached_property
    def vocabulary(self) -> Mapping[str, int] | None:
        """Token -> id, from tokenizer.json; None where there is none or it keeps its tokens in another way.

        Raises:
            ModelError: the file is damaged.
        """
        return _vocabulary(self.tokenizer_file) if self.tokenizer_file else None

    @property
    def embedding_rows(self) -> int | None:
        return self._count("vocab_size")

    @property
    def positions(self) -> int | None:
        """The model's maximum context in tokens."""
        return self._count("max_position_embeddings", "n_positions")

    @property
    def blocks(self) -> int | None:
        """Decoder layers."""
        return self._count("num_hidden_layers", "n_layer", "num_layers")

    @property
    def width(self) -> int | None:
        """Of the hidden states."""
        return self._count("hidden_size", "n_embd")

    @property
    def embedding_width(self) -> int | None:
        """Of the word embedding, which some models project to the width of their blocks."""
        return self._count("word_embed_proj_dim", "hidden_size", "n_embd")

    @property
    def heads(self) -> int | None:
        """Attention maps of a block."""
        return self._count("num_attention_heads", "n_head", "num_heads")

    @property
    def tokens(self) -> int | None:
        """Of the tokeniser, where it can be read; else the rows that the embedding has for them."""
        return len(self.vocabulary) if self.vocabulary else self.embedding_rows

    @property
    def shape(self) -> Shape:
        """What distillation asks of a student or a teacher."""
        return Shape(blocks=self.blocks, width=self.width, heads=self.heads, vocabulary=self.tokens)

    @cached_property
    def text_config(self) -> Mapping[str, Any]:
        """Of the part that reads text: a model that sees or hears too keeps it below."""
        return text_part(self.config or {})

    def _count(self, *names: str) -> int | None:
        found = self.text_config.get(next((name for name in names if name in self.text_config), ""))
        return found if isinstance(found, int) and found > 0 else None


# -- models ----------------------------------------------------------------------------------------------------------


def positions_of(source: str | None) -> int | None:
    """How many tokens the model of a folder takes at most; None of any other, or where its config does not say."""
    config = Path(source or "", "config.json")
    if source is None or not config.is_file():
        return None
    try:
        return ModelFacts(ModelSpec(source=source), source, "", config=read_json(config)).positions
    except (OSError, ValueError, TypeError, AttributeError):  # damaged, which `sweep check` reports
        return None


def model_facts(model: ModelSpec, files: Files, base: Path | None = None) -> ModelFacts:
    """Looks at a model without loading it.

    Raises:
        ModelError: the folder or file is missing, damaged or no model; a built-in name is unknown.
    """
    facts = _model_facts(model, files, base)
    return _with_tokenizer(facts, model.tokenizer, files, base) if model.tokenizer else facts


def _model_facts(model: ModelSpec, files: Files, base: Path | None) -> ModelFacts:
    source = model.source
    if is_builtin(source):
        return _builtin(model)
    path = model_place(source, base)
    if path is None:
        return _hub(model)
    if path.is_dir():
        return _folder(model, path, files)
    located = model.model_copy(update={"source": str(path)})
    content = model_files(located.model_copy(update={"tokenizer": None}))
    hashes = files.hash_all(content)
    return ModelFacts(located, source, hashes[0] if len(hashes) == 1 else digest(hashes), files=tuple(content))


def _builtin(model: ModelSpec) -> ModelFacts:
    source = model.source
    if source not in BUILTIN_MODELS:
        raise ModelError(unknown("built-in model", source, BUILTIN_MODELS))
    found = BUILTIN_MODELS[source]
    embeddings = {
        "transformer.wte.weight": (found.vocabulary, found.width),
        "transformer.wpe.weight": (found.positions, found.width),
    }
    return ModelFacts(
        model,
        source,
        digest([source, asdict(found)]),
        config={
            "model_type": "gpt2",
            "vocab_size": found.vocabulary,
            "n_positions": found.positions,
            "n_layer": found.layers,
            "n_embd": found.width,
            "n_head": found.heads,
        },
        tensors={**{name: (inputs, out) for name, (out, inputs) in found.matrices.items()}, **embeddings},
    )


def _folder(model: ModelSpec, path: Path, files: Files) -> ModelFacts:
    located = model.model_copy(update={"source": str(path), "tokenizer": None})
    content = model_files(located)
    config = _json(path / "config.json")
    tokenizer = _json(path / TOKENIZER_CONFIG) if (path / TOKENIZER_CONFIG).is_file() else {}
    code, unchecked = _code_elsewhere(model, [*_classes(config), *_classes(tokenizer)], path)
    names = [file.relative_to(path).as_posix() for file in content]
    return ModelFacts(
        model.model_copy(update={"source": str(path), "code_revision": code}),
        model.source,
        digest([names, files.hash_all(content), *([code] if code else [])]),
        config=config,
        tensors=tensor_shapes(path, weight_files(path)) if model.weights == "stored" else None,
        tokenizer_file=path / TOKENIZER if path / TOKENIZER in content else None,
        files=tuple(content),
        unchecked=unchecked,
    )


def _code_elsewhere(
    model: ModelSpec, names: Sequence[str], folder: Path | None = None
) -> tuple[str | None, str | None]:
    """The commit of the repository that a model's code comes from, where it is another one than its own.

    Also what could not be checked, in words. Without it the code could change under a key.

    Args:
        names: what auto_map names.
        folder: of a local model.

    Raises:
        ModelError: there is no such code, or it is no part of what the key stands for.
    """
    if not model.trust_remote_code or not names:
        return None, None
    for name in names:
        if folder and "--" not in name and not (folder / f"{name.rpartition('.')[0]}.py").is_file():
            raise ModelError(
                f"auto_map must name code beside the model, FILE.CLASS; {model.source} names {name} and holds no "
                f"{name.rpartition('.')[0]}.py. Copy the code there."
            )
    elsewhere = {name.partition("--")[0] for name in names if "--" in name}
    if not elsewhere:
        return None, None
    if len(elsewhere) > 1:
        raise ModelError(
            f"a model's code must come from one repository; that of {model.source} comes from "
            f"{listed(sorted(elsewhere))}. {_COPY}"
        )
    repository = elsewhere.pop()
    if is_path(repository) or find_local(repository):
        raise ModelError(
            f"a model's code must be next to it or in a repository of the hub; auto_map of {model.source} names the "
            f"folder {repository}, which is no part of the model. {_COPY}"
        )
    try:
        return hub.commit(repository, model.code_revision), None
    except hub.Unreachable as error:
        return model.code_revision, f"the code of {model.source}: {error}"
    except ModelError as error:
        raise ModelError(f"the code of {model.source}, as its auto_map says: {error}") from error


_COPY = "Copy the code beside the model, and name it in auto_map."


def _classes(config: Mapping[str, Any] | None) -> list[str]:
    """What auto_map names: FILE.CLASS beside the model, or REPOSITORY--FILE.CLASS."""
    given = (config or {}).get("auto_map")
    values = given.values() if isinstance(given, Mapping) else ()
    pairs = [value if isinstance(value, list) else [value] for value in values]  # of tokenisers, slow and fast
    return [name for pair in pairs for name in pair if isinstance(name, str)]


def _hub(model: ModelSpec) -> ModelFacts:
    source = model.source
    try:
        revision = hub.commit(source, model.revision)
    except hub.Unreachable as error:
        return ModelFacts(model, source, f"{source}@{model.revision or 'unresolved'}", unchecked=str(error))
    refuse_adapter(source, revision)
    file = hub.cached_file(source, revision, "config.json")
    config = _json(file) if file else None
    tokenizer = hub.cached_file(source, revision, TOKENIZER_CONFIG) if model.trust_remote_code else None
    code, unchecked = _code_elsewhere(model, [*_classes(config), *_classes(_json(tokenizer) if tokenizer else None)])
    pinned = {"revision": revision, "code_revision": code}  # what was planned is loaded, whatever comes after
    return ModelFacts(
        model.model_copy(update=pinned),
        source,
        f"{source}@{revision}" + (f"+{code}" if code else ""),
        config=config,
        tokenizer_file=hub.cached_file(source, revision, TOKENIZER),
        unchecked=unchecked if config else f"model {source}: its config.json could not be fetched",
    )


def _with_tokenizer(facts: ModelFacts, name: str, files: Files, base: Path | None) -> ModelFacts:
    """The same model with a tokeniser from elsewhere."""
    located, revision, file, unchecked = name, None, None, facts.unchecked
    settings: Path | None = None
    found: list[Path] = []
    path = find_local(name, base)
    if is_builtin(name):
        if name not in BUILTIN_MODELS:
            raise ModelError(unknown("built-in tokeniser", name, BUILTIN_MODELS))
        identity = digest([name, asdict(BUILTIN_MODELS[name])])
    elif path:
        found = tokenizer_files(path, code=facts.model.trust_remote_code)
        if not any(item.name.startswith(("tokenizer", "vocab", "spiece")) or path.is_file() for item in found):
            raise ModelError(f"tokeniser folder {name} holds no {TOKENIZER}. Check the path.")
        place = path.parent if path.is_file() else path
        names = [item.relative_to(place).as_posix() for item in found]
        located, identity = str(path), digest([names, files.hash_all(found)])
        settings = path / TOKENIZER_CONFIG
        file = path / TOKENIZER if path / TOKENIZER in found else None
    elif is_path(name):
        raise ModelError(f"a tokeniser must be a hub id or an existing folder; {name} is not there.")
    else:
        try:
            revision = hub.commit(name, facts.model.tokenizer_revision)
            identity, file = f"{name}@{revision}", hub.cached_file(name, revision, TOKENIZER)
            settings = hub.cached_file(name, revision, TOKENIZER_CONFIG) if facts.model.trust_remote_code else None
        except hub.Unreachable as error:
            identity, unchecked = f"{name}@unresolved", unchecked or str(error)
    if facts.model.trust_remote_code and settings and settings.is_file():
        elsewhere = [one for one in _classes(_json(settings)) if "--" in one and one.partition("--")[0] != name]
        if elsewhere:
            raise ModelError(f"a tokeniser's code must be next to it; auto_map of {name} names {elsewhere[0]}. {_COPY}")
    return replace(
        facts,
        model=facts.model.model_copy(update={"tokenizer": located, "tokenizer_revision": revision}),
        fingerprint=digest([facts.fingerprint, identity]),
        tokenizer_file=file,
        files=(*facts.files, *found),
        unchecked=unchecked,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}. Copy or download it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} must be a JSON object; {path} holds {type(content).__name__}.")
    return content


def _vocabulary(path: Path) -> Mapping[str, int] | None:
    content = _json(path)
    model = content.get("model")
    tokens = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(tokens, list):  # a unigram model: [token, score], the place in the list is the id
        tokens = {item[0]: index for index, item in enumerate(tokens) if isinstance(item, list) and item}
    if not isinstance(tokens, Mapping):
        return None
    try:
        added = {str(item["content"]): int(item["id"]) for item in content.get("added_tokens") or []}
        return {**{str(token): int(index) for token, index in tokens.items()}, **added}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{TOKENIZER} must give each token a number; {path} does not: {error!r}. Copy or download it again."
        ) from error


# -- datasets --------------------------------------------------------------------------------------------------------


def split_files(data: DataSpec, base: Path | None = None) -> dict[str, tuple[Path, ...]] | None:
    """As `sources.local_splits`, of a spec's data."""
    return local_splits(data.path, data.files, train_split=data.train_split, base=base)


def dataset_commit(data: DataSpec) -> str | None:
    """The commit of a hub dataset where the hub or its cache knows it; else what the text names."""
    if data.path is None or is_builtin(data.path):
        return data.revision
    try:
        return hub.commit(data.path, data.revision, "dataset")
    except hub.Unreachable:
        return data.revision


def data_fingerprint(data: DataSpec, split: str, files: Files, base: Path | None = None) -> tuple[str, str | None]:
    """What stands for a split of a text in keys, and what could not be checked, in words.

    Raises:
        DataError: the split does not exist, or its files are empty or of several kinds.
    """
    local = split_files(data, base)
    if local is not None:
        if split not in local:
            field = "train_split" if split == data.train_split else "split"
            raise DataError(
                f"data has no split {split!r}. Valid: {listed(local)}. Set {field} to one of them, or name its files "
                "under data.files."
            )
        found = local[split]
        reading = _READING[kind_of(found)]
        column_in(found, data.text_column, data.messages)  # refuses what is not clear before anything is hashed or runs
        if any(files.says(file, begins_with_mark) for file in found):
            reading += ", without a mark"
        chat = [] if data.messages is None else [{"messages": data.messages}]
        return digest([data.text_column, reading, files.hash_all(found), *chat]), None
    path = str(data.path)
    if is_builtin(path):
        text = BUILTIN_TEXTS[path]
        if split not in text.splits:
            raise DataError(f"{path} has no split {split!r}. Valid: {listed(text.splits)}.")
        return digest([path, text.version, split]), None
    identity = [path, data.name, data.text_column, split, *([{"messages": data.messages}] if data.messages else [])]
    try:
        return digest([*identity, hub.commit(path, data.revision, "dataset")]), None
    except hub.Unreachable as error:
        return digest([*identity, data.revision or "unresolved"]), str(error)

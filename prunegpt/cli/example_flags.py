"""The flags of transformers' run_clm.py example that `prunegpt train` has no option of its own for.

Each is a field of a spec, or is refused with the reason and with what to type instead.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunegpt.errors import PruneGPTError, unknown
from prunegpt.spec.paths import set_path
from prunegpt.spec.read import parse_value
from prunegpt.spec.training_arguments import DECISIVE, NEUTRAL, REFUSED

# Flag -> the field of a trial that it sets.
PATHS: Mapping[str, str] = {
    "tokenizer_name": "model.tokenizer",
    "model_revision": "model.revision",
    "trust_remote_code": "model.trust_remote_code",
    "dtype": "precision",
    "torch_dtype": "precision",
    "max_train_samples": "data.max_train_blocks",  # the example cuts blocks before it counts them
    "max_eval_samples": "evaluate.max_windows",
}
# Flag -> the value with which it means what is done here anyway, and why another is not taken.
_SCRATCH = "training begins with a model that is saved: build one from its config and give its folder"
_LOADING = "datasets are read from disk in one way"
FIXED: Mapping[str, tuple[Any, str]] = {
    "model_type": (None, _SCRATCH),
    "config_name": (None, _SCRATCH),
    "config_overrides": (None, _SCRATCH),
    "use_fast_tokenizer": (True, "only fast tokenizers are used"),
    "token": (None, "set HF_TOKEN in the environment"),
    "use_auth_token": (False, "set HF_TOKEN in the environment"),
    "low_cpu_mem_usage": (False, "weights are loaded in one way"),
    "streaming": (False, _LOADING),
    "overwrite_cache": (False, "blocks are cached under the content of the text, so that none is outdated"),
    "validation_split_percentage": (None, "give --validation_file, or a dataset with a validation split"),
    "preprocessing_num_workers": (None, _LOADING),
    "keep_linebreaks": (True, "lines keep their ends, as in the example"),
    "report_to": ("none", "use `tracking`"),
}
_SETTABLE = re.compile(r"use `([a-z_.]+)`")


@dataclass
class ExampleFlags:
    """What the flags come to.

    Attributes:
        train: training arguments.
        fields: path in a trial -> value.
    """

    train: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)

    def into(self, base: dict[str, Any]) -> None:
        """Sets the fields in the base of a spec."""
        for path, value in self.fields.items():
            if path.startswith("model.") and isinstance(base.get("model"), str):
                base["model"] = {"source": base["model"]}
            set_path(base, path.split("."), value)


def example_flags(arguments: Sequence[str], options: Sequence[str] = ()) -> ExampleFlags:
    """Reads flags as transformers.HfArgumentParser does: `--weight_decay 0.1`, `--weight-decay=0.1`, `--no_bf16`.

    Args:
        arguments: of the command line, but for the options of `train` itself.
        options: the names of those, for hints.

    Raises:
        PruneGPTError: a flag is refused or unknown, or a word belongs to none; all of them.
    """
    found, problems = ExampleFlags(), []
    for name, value in _pairs(arguments):
        problem = _take(found, name, value, options)
        problems += [problem] if problem else []
    if problems:
        raise PruneGPTError("\n".join(problems))
    return found


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Name -> value of each flag; True of a bare one. A word before the first flag has no name."""
    name, words = "", list[str]()
    for word in [*arguments, "--"]:
        if not word.startswith("--"):
            words.append(word)
            continue
        if name or words:
            yield name, _value(words) if words else True
        name, equals, rest = word[2:].partition("=")
        name = name.replace("-", "_")
        words = [rest] if equals else []


def _value(words: Sequence[str]) -> Any:
    try:
        values = [None if word == "None" else parse_value(word) for word in words]
    except ValueError:
        values = list(words)
    return values[0] if len(values) == 1 else values


def _take(found: ExampleFlags, name: str, value: Any, options: Sequence[str]) -> str | None:
    """Notes one flag; what is wrong with it."""
    if not name:
        words = value if isinstance(value, list) else [value]
        return f"{' '.join(map(str, words))} belongs to no flag. Write --FLAG VALUE."
    known = {*DECISIVE, *NEUTRAL, *REFUSED, *PATHS, *FIXED}
    if name not in known and name.startswith("no_") and name[3:] in known and value is True:
        name, value = name[3:], False
    if name in FIXED and value == FIXED[name][0]:
        return None
    if name in DECISIVE | NEUTRAL:
        found.train[name] = value
    elif name in PATHS:
        found.fields[PATHS[name]] = value
    elif name in FIXED or name in REFUSED:
        reason = FIXED[name][1] if name in FIXED else REFUSED[name]
        path = _SETTABLE.search(reason)
        hint = f"Write --set base.{path[1]}=VALUE" if path else "Leave it out"
        return f"--{name} is not taken: {reason}. {hint}."
    else:
        hint = "Other fields of a spec are set by --set, such as --set base.evaluate.protocol=stream."
        return f"{unknown('flag', name, sorted({*known, *options}))} {hint}"
    return None

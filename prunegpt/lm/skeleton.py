"""A model without its weights: built from its config on the meta device, where tensors have shapes and no memory."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from prunegpt.builtin import BUILTIN_MODELS, is_builtin
from prunegpt.errors import ModelError, unknown
from prunegpt.lm.checks import check_config
from prunegpt.lm.located import explained, locate
from prunegpt.lm.multimodal import auto_class, empty_model, read_text


def build_empty(source: str) -> PreTrainedModel:
    """A model as its config describes it, without its weights: for what names and shapes alone decide.

    Raises:
        ModelError: the source is missing, or not a causal decoder.
    """
    if is_builtin(source):
        if source not in BUILTIN_MODELS:
            raise ModelError(unknown("built-in model", source, BUILTIN_MODELS))
        from prunegpt.builtin.model import build

        return build(0, source)
    name, options = locate(source, None, trust_remote_code=False, weights=False)
    with explained(source):
        config = AutoConfig.from_pretrained(name, **options)
    check_config(source, config, trust_remote_code=False)
    with explained(source):
        return empty_model(config)


def build_random(
    source: str,
    seed: int,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    code_revision: str | None = None,
) -> PreTrainedModel:
    """A model as its config describes it, its weights drawn as its family draws them before training.

    In float32 on the CPU, in evaluation mode; equal seeds give equal weights, and torch's random state stays.

    Raises:
        ModelError: the source is missing, or not a causal decoder.
    """
    name, options = locate(source, revision, trust_remote_code, weights=False)
    if trust_remote_code and code_revision:
        options["code_revision"] = code_revision
    with explained(source):
        config = AutoConfig.from_pretrained(name, **options)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # of weights that are not read
    check_config(source, config, trust_remote_code)
    code = {key: value for key, value in options.items() if key in ("trust_remote_code", "code_revision")}
    with explained(source), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto_class(config).from_config(config, dtype=torch.float32, **code)
    return read_text(model.eval())


def skeleton(config: Mapping[str, Any]) -> PreTrainedModel:
    """The same from the content of a config.json.

    Raises:
        Exception: whatever transformers raises where the config is none, or its family cannot be built so.
    """
    with TemporaryDirectory(prefix="prunegpt-config-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
        read = AutoConfig.from_pretrained(folder)  # which knows older spellings, and infinity
    return empty_model(read)

"""A model without its weights: built from its config on the meta device, where tensors have shapes and no memory."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


def skeleton(config: Mapping[str, Any]) -> PreTrainedModel:
    """The causal language model that a config.json describes, with no weights.

    Raises:
        Exception: whatever transformers raises where the config is none, or its family cannot be built so.
    """
    with TemporaryDirectory(prefix="prunegpt-config-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
        read = AutoConfig.from_pretrained(folder)  # which knows older spellings, and infinity
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(read)
    return model

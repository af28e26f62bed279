"""Models that see or hear beside reading text: loaded and saved whole; their text part is pruned and trained."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING

from prunegpt.lm.views import OTHER_SENSES, text_decoder
from prunegpt.planning import hub
from prunegpt.planning.sources import model_place

_PROCESSOR = (
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    "chat_template.json",  # beside that of the tokeniser, which is saved with it
)
_TEXT = {  # models that must be given the kind of each token: argument, and its value for text
    "molmo2": ("mm_token_type_ids", 0),
    "paligemma": (
        "token_type_ids",
        1,
    ),  # of what it writes: every token sees those before it; of the prompt it sees all
}


def auto_class(config: Any) -> Any:
    """The auto class that loads a model as the architecture that its config names.

    Of a config that transformers has two classes for, the whole model and its text part, it is the one that was saved.
    """
    causal, whole = (
        mapping.get(type(config), None) for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING)
    )
    saved = (getattr(config, "architectures", None) or [""])[0]
    if whole is not None and whole is not causal and (causal is None or saved == whole.__name__):
        return AutoModelForMultimodalLM
    return AutoModelForCausalLM


def empty_model(config: Any) -> PreTrainedModel:
    """The model of a config on the meta device, where tensors have shapes and no memory."""
    with torch.device("meta"):
        model: PreTrainedModel = auto_class(config).from_config(config)
    model.tie_weights()
    return model


def is_language_model(config: Any) -> bool:
    """Whether transformers has a model for it that predicts text."""
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING


def read_text(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, whose parts for other senses are neither trained nor asked for."""
    if type(model.config) not in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return model
    head = model.get_output_embeddings()
    text = {id(weight) for part in (text_decoder(model), head) if part is not None for weight in part.parameters()}
    for name, weight in model.named_parameters():
        if id(weight) not in text or OTHER_SENSES.search(name):
            weight.requires_grad_(False)
    if model.config.model_type in _TEXT:
        model.register_forward_pre_hook(_say_text, with_kwargs=True)
    if model.config.model_type == "llama4":  # transformers 5.24 asks the output of its text part for images
        model.get_submodule("language_model").register_forward_hook(_no_image_outputs)
    return model


def _say_text(model: Any, arguments: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    name, kind = _TEXT[model.config.model_type]
    return arguments, {name: torch.full_like(given["input_ids"], kind), **given}


def _no_image_outputs(_module: Any, _arguments: Any, output: Any) -> Any:
    output.image_outputs = None
    return output


def processor_files(source: str | Path, revision: str | None = None) -> dict[str, bytes]:
    """The files beside a model's weights by which images and sounds are prepared: name -> content.

    A saved model carries them along.
    """
    place = model_place(str(source))
    if place is not None and place.is_file():
        return {}
    found = {name: place / name if place else hub.cached_file(str(source), revision, name) for name in _PROCESSOR}
    return {name: file.read_bytes() for name, file in found.items() if file is not None and file.is_file()}

"""The model and the text that need no download. Names and figures only: nothing here imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PREFIX = "builtin:"


@dataclass(frozen=True)
class BuiltinText:
    """A text that an installed package carries."""

    splits: tuple[str, ...]
    version: int  # raised when rows or splits change


@dataclass(frozen=True)
class Pretraining:
    """How a built-in model is trained before its first use: the same for all sweeps, so that it is one model."""

    text: str
    split: str
    block_size: int  # tokens
    seed: int  # draws the weights and the order of the blocks
    arguments: Mapping[str, float | int | str]  # names of transformers.TrainingArguments


@dataclass(frozen=True)
class BuiltinModel:
    """A small GPT-2 that is built at random and trained before its first use."""

    layers: int
    width: int
    heads: int
    positions: int  # tokens
    vocabulary: int
    pretraining: Pretraining

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Shapes [out, in] of the weight matrices of the decoder layers by parameter name, in module order."""
        width = self.width
        shapes = {
            "attn.c_attn": (3 * width, width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (4 * width, width),
            "mlp.c_proj": (width, 4 * width),
        }
        return {
            f"transformer.h.{layer}.{name}.weight": shape
            for layer in range(self.layers)
            for name, shape in shapes.items()
        }


BUILTIN_TEXTS: Mapping[str, BuiltinText] = MappingProxyType(
    {"builtin:text": BuiltinText(splits=("pretrain", "train", "validation"), version=1)}
)
BUILTIN_MODELS: Mapping[str, BuiltinModel] = MappingProxyType(
    {
        "builtin:tiny-gpt2": BuiltinModel(
            layers=4,
            width=128,
            heads=4,
            positions=128,
            vocabulary=1024,
            pretraining=Pretraining(
                text="builtin:text",
                split="pretrain",
                block_size=128,
                seed=0,
                arguments={
                    "num_train_epochs": 1,
                    "per_device_train_batch_size": 16,
                    "learning_rate": 2e-3,
                    "lr_scheduler_type": "linear",
                    "warmup_steps": 25,
                    "weight_decay": 0.0,
                    "max_grad_norm": 1.0,
                },
            ),
        )
    }
)


def is_builtin(source: str) -> bool:
    """Whether a source names a built-in part, such as builtin:text."""
    return source.startswith(PREFIX)

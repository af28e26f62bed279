"""Every modifier of SparseML and llm-compressor with its fields, and what each of them comes to here.

A field is honoured, or its line says what happens instead: that line is the note of `recipe show` wherever a recipe
gives the field another value than the usual one. A field that is not listed is refused. `prunegpt recipe fields` prints
the table; the tests compare it with the fields of both tools.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

Level = Literal["supported", "partly", "unsupported", "ignored"]
LEVELS: Mapping[Level, str] = {
    "supported": "supported",
    "partly": "supported in part",
    "unsupported": "not supported",
    "ignored": "without effect here",
}


class Field(NamedTuple):
    """What a field comes to.

    Attributes:
        level: `supported`: it is read; any other is reported wherever the field is given.
        text: what it becomes, or what happens instead.
        usual: values with which the text does not apply.
    """

    level: Level
    text: str
    usual: tuple[Any, ...] = ()


Fields = Mapping[str, Field]


def _to(text: str) -> Field:
    return Field("supported", text)


def _partly(text: str, *usual: Any) -> Field:
    return Field("partly", text, usual)


def _ignored(text: str, *usual: Any) -> Field:
    return Field("ignored", text, usual)


_LOGS = {"log_types": _ignored("it chooses what is logged.", "__ALL__")}
_LOGGING = _LOGS | {"constant_logging": _ignored("it chooses what is logged.")}
_ALWAYS = _ignored("it is done at every step.", -1, -1.0)

# -- SparseML up to 1.9, `!Modifier` -----------------------------------------------------------------------------------

_TIMES: Fields = {
    "start_epoch": _to("`prune.start`"),
    "end_epoch": _to("`prune.end`"),
    "update_frequency": _to("`prune.every`"),
    "leave_enabled": _partly("false lets pruned weights come back after end_epoch; here they stay zero.", True),
    "params": _to("`prune.targets`"),
    "mask_type": _to("`prune.pattern`; filters and channels are not supported"),
    **_LOGS,
}
_GRADUAL: Fields = {
    **_TIMES,
    "init_sparsity": _to("`prune.initial`; `__FROM_PARAM__` begins at 0, with the masks that are there"),
    "final_sparsity": _to("`prune.sparsity`, or `prune.allocation` of a mapping"),
    "inter_func": _to("`prune.schedule`"),
}
_CHANGE: Fields = {
    "start_epoch": _to("start of a segment of `learning_rate`"),
    "end_epoch": _to("end of a segment of `learning_rate`"),
    "init_lr": _to("the rate at its start"),
    "param_groups": _partly("here the learning rate is that of all parameters."),
    "update_frequency": _ALWAYS,
    **_LOGGING,
}
_WINDOW: Fields = {
    "start_epoch": _to("distillation begins with training; a later start is noted"),
    "end_epoch": _to("distillation ends with training; an earlier end is noted"),
    "update_frequency": _ALWAYS,
    "distill_output_keys": _to("the logits are distilled; other outputs are noted"),
    "teacher_input_keys": _partly("the teacher is given what the student is given."),
    **_LOGS,
}
_LEGACY: Mapping[str, Fields] = {
    "GMPruningModifier": {
        **_GRADUAL,
        "global_sparsity": _to("`prune.allocation: global`"),
        "phased": _partly("true alternates dense and pruned phases (AC/DC); here as schedule acdc.", False),
        "score_type": _to("`prune.method`: magnitude or movement; M-FAC is not supported"),
        "mfac_options": _ignored("there is no M-FAC here."),
    },
    **dict.fromkeys(
        ("MagnitudePruningModifier", "GlobalMagnitudePruningModifier", "MovementPruningModifier"), _GRADUAL
    ),
    "OBSPruningModifier": {
        **_GRADUAL,
        "global_sparsity": _partly(
            "it ranks weights over all layers; here a solver prunes each layer to the sparsity.", False
        ),
        "num_grads": _to("`prune.calibration.windows`"),
        "fisher_block_size": _to("`prune.options.fisher_block`"),
        "damp": _partly("it is a number in SparseML and a share of the mean Fisher diagonal here; ours is used."),
        "num_recomputations": _partly(
            "pruning in several sub-steps with fresh statistics; here one step an update.", 1
        ),
        "grad_sampler_kwargs": _partly("gradients are those of `prune.calibration` here."),
    },
    "ACDCPruningModifier": {
        **_TIMES,
        "compression_sparsity": _to("`prune.sparsity`, with schedule acdc"),
        "global_sparsity": _to("`prune.allocation: global`"),
        "momentum_buffer_reset": _partly("here moments are zeroed wherever a mask closes.", True),
    },
    "ConstantPruningModifier": {
        "params": _to("`keep_zeros`, of all matrices of the decoder layers; other names are noted"),
        "start_epoch": _to("from the beginning; a later start is noted"),
        "end_epoch": _to("to the end; an earlier end is noted"),
        "update_frequency": _ALWAYS,
        **_LOGS,
    },
    "DistillationModifier": {
        **_WINDOW,
        "hardness": _to("`distill.hardness`"),
        "temperature": _to("`distill.temperature`"),
    },
    "PerLayerDistillationModifier": {
        **_WINDOW,
        "distill_output_keys": _partly("hidden states are compared."),
        "gain": _to("`distill.hidden_gain`"),
        "student_layer_names": _to("`distill.layer_map`"),
        "teacher_layer_names": _to("`distill.layer_map`"),
        "normalize": _partly(
            "false compares hidden states as they are; here each is divided by the teacher's norm.", True
        ),
        "project_features": _partly("here hidden states are projected where the widths differ.", True),
        "epsilon": _ignored("the teacher's norm is never 0 here."),
    },
    "SetLearningRateModifier": {
        "learning_rate": _to("a constant segment of `learning_rate`"),
        "start_epoch": _to("its start"),
        "end_epoch": _ignored("the rate holds until the next modifier.", -1, -1.0),
        "param_groups": _CHANGE["param_groups"],
        **_LOGGING,
    },
    "LearningRateFunctionModifier": {
        **_CHANGE,
        "lr_func": _to("shape of a segment of `learning_rate`"),
        "final_lr": _to("the rate at its end"),
        "cycle_epochs": _to("`cycle` of the segment, for cyclic_linear"),
    },
    "LearningRateModifier": {
        **_CHANGE,
        "lr_class": _to("StepLR, MultiStepLR, ExponentialLR, CosineAnnealingWarmRestarts"),
        "lr_kwargs": _to("factor, steps and cycle of the segments; growing cycles are not supported"),
    },
    "SetWeightDecayModifier": {
        "weight_decay": _to("`train.weight_decay`"),
        "start_epoch": _to("from the beginning; a later start is noted"),
        "end_epoch": _ignored("it holds to the end.", -1, -1.0),
        "param_groups": _partly("here it holds for all parameters that decay."),
        **_LOGGING,
    },
    "EpochRangeModifier": {
        "start_epoch": _to("counts towards `train.num_train_epochs`"),
        "end_epoch": _to("`train.num_train_epochs`"),
        "update_frequency": _ALWAYS,
        **_LOGS,
    },
}

# -- SparseML from 1.6 on, and llm-compressor: stages of modifiers -----------------------------------------------------

_PLACE: Fields = {
    "index": _ignored("modifiers are read in their order."),
    "group": _ignored("modifiers are read in their order."),
    "requires_calibration_data": _ignored("the method decides whether it is calibrated."),
}
_NEVER: Fields = {
    name: _ignored("a one-shot stage prunes once.", *usual)
    for name, usual in (("start", (-1, -1.0, 0, 0.0)), ("end", (-1, -1.0)), ("update", (-1, -1.0)))
}
_ONE_SHOT: Fields = {
    **_PLACE,
    **_NEVER,
    "sparsity": _to("`prune.sparsity`, or `prune.allocation` of a list"),
    "sparsity_profile": _to("`prune.allocation: owl`"),
    "owl_m": _to("`prune.options.multiple`"),
    "owl_lmbda": _to("`prune.options.limit`"),
    "mask_structure": _to("`prune.pattern`: N of N:M is pruned there and kept here"),
    "sequential_update": _to("`prune.propagate`"),
    "sequential_targets": _ignored("the decoder layers are pruned one after the other, whatever they are called."),
    "targets": _to("`prune.targets`; the name of a class means all matrices of the decoder layers"),
    "ignore": _to("`prune.exclude`"),
    "compress_layers": _to("an old name of targets"),
    "target_ids": _ignored("a layer is given what the model gives it."),
    "layer_prefix": _ignored("the decoder layers are found by themselves."),
    "prunen": _to("N of mask_structure N:M"),
    "prunem": _to("M of mask_structure N:M"),
}
_SESSION: Mapping[str, Fields] = {
    "MagnitudePruningModifier": {
        **_PLACE,
        "targets": _ONE_SHOT["targets"],
        "compress_layers": _ONE_SHOT["compress_layers"],
        "start": _to("`prune.start`"),
        "end": _to("`prune.end`"),
        "update": _to("`prune.every`"),
        "init_sparsity": _to("`prune.initial`"),
        "final_sparsity": _to("`prune.sparsity`"),
        "update_scheduler": _to("`prune.schedule`: linear, cubic; others are not supported"),
        "scheduler_args": _to("the exponent of a polynomial that is linear or cubic"),
        "mask_structure": _ONE_SHOT["mask_structure"],
        "prunen": _ONE_SHOT["prunen"],
        "prunem": _ONE_SHOT["prunem"],
        "leave_enabled": _partly("false lets pruned weights come back after end; here they stay zero.", True),
        "apply_globally": _partly("it is not implemented in SparseML; here as allocation global.", False),
    },
    "SparseGPTModifier": {
        **_ONE_SHOT,
        "block_size": _to("`prune.options.block_size`"),
        "dampening_frac": _to("`prune.options.damping`"),
        "percdamp": _to("an old name of dampening_frac"),
        "preserve_sparsity_mask": _partly(
            "false may bring pruned weights back; here masks of earlier stages stay.", True
        ),
        "offload_hessians": _ignored("statistics of one decoder layer are held at a time."),
        "quantize": Field("unsupported", "weights are pruned but not quantised here.", (False,)),
    },
    "WandaPruningModifier": _ONE_SHOT,
    "OutputDistillationModifier": {
        **_PLACE,
        "start": _partly("here every step is distilled.", -1, -1.0, 0, 0.0),
        "end": _partly("here every step is distilled.", -1, -1.0),
        "update": _to("here every step is distilled; intervals are noted"),
        "targets": _to("`distill.layer_map`, for hidden states; of the divergence the logits"),
        "comparison": _to("`distill.loss: reverse_kl` of kl_divergence, `distill.hidden_gain` of square_head and mse"),
        "comparison_args": _partly("its temperature softens nothing there; here 1.", {}, {"temperature": 1}),
        "orig_scale": _to("`distill.hardness`"),
        "distill_scale": _to("`distill.hardness`, `distill.hidden_gain`"),
        "projection": _partly("here hidden states are projected only where the widths differ."),
        "projection_args": _partly("here hidden states are projected only where the widths differ.", {}),
        "transforms": _partly("outputs are compared as they are, but for the softmax of a divergence.", "identity"),
        "transforms_args": _partly("outputs are compared as they are, but for the softmax of a divergence.", {}),
        "offload_layer_output": _ignored("outputs stay on their device."),
    },
    "ConstantPruningModifier": {
        **_PLACE,
        "targets": _LEGACY["ConstantPruningModifier"]["params"],
        "start": _to("from the beginning; a later start is noted"),
        "end": _to("to the end; an earlier end is noted"),
        "update": _ALWAYS,
    },
}
CATALOGUE: Mapping[str, Mapping[str, Fields]] = {"legacy": _LEGACY, "session": _SESSION}

_QUANTISATION = "weights and activations are not quantised here."
UNSUPPORTED: Mapping[str, str] = {  # modifiers of either dialect that have no counterpart
    "MFACPruningModifier": "there is no M-FAC here; OBSPruningModifier becomes obert, which is the nearest.",
    "StructuredPruningModifier": "filters and channels are not removed here.",
    "LayerPruningModifier": "layers are not dropped here.",
    "LayerThinningModifier": "layers are not removed from the model here.",
    "RigLPruningModifier": "there is no RigL here; ACDCPruningModifier also lets weights come back.",
    "TopKASTPruningModifier": "there is no Top-KAST here; ACDCPruningModifier also lets weights come back.",
    "PowerpropagationModifier": "weights are not reparametrised here.",
    "ASRegModifier": "activations are not regularised here.",
    "TrainableParamsModifier": "parameters are not frozen here.",
    "SetParamModifier": "parameters are not set by hand here.",
    "GradualParamModifier": "parameters are not set by hand here.",
    "SparseOPTModifier": "write SparseGPTModifier in a `oneshot` stage.",
    "SparseLlamaModifier": "write SparseGPTModifier in a `oneshot` stage.",
    "REAPPruningModifier": "experts are not removed here.",
    **dict.fromkeys(("QuIPModifier", "SpinQuantModifier"), "weights are not rotated here."),
    **dict.fromkeys(
        (
            *("QuantizationModifier", "LegacyQuantizationModifier", "vLLMQuantizationModifier", "GPTQModifier"),
            *("AWQModifier", "AutoRoundModifier", "SmoothQuantModifier", "LogarithmicEqualizationModifier"),
            *("IMatrixGatherer", "KVCacheScaleModifier"),
        ),
        _QUANTISATION,
    ),
}
IGNORED = frozenset({"SparsificationLoggingModifier", "LoggingModifier"})


def reference() -> str:
    """The table as Markdown."""
    return "\n".join(_reference())


def _reference() -> Iterator[str]:
    yield "# Fields of SparseML and llm-compressor modifiers\n"
    yield (
        "Made by `prunegpt recipe fields`; do not edit. What is not supported stops a conversion and a run; "
        "`recipe show`\nlists all that a recipe asks for and does not get. Fields that are not listed are refused.\n"
    )
    titles = {
        "legacy": "SparseML to 1.9: lists of `!Modifier`",
        "session": "SparseML from 1.6, llm-compressor: stages of modifiers",
    }
    for dialect, modifiers in CATALOGUE.items():
        yield f"## {titles[dialect]}\n"
        together: dict[int, list[str]] = {}
        for name, fields in modifiers.items():
            together.setdefault(id(fields), []).append(name)
        for names in together.values():
            yield f"### {', '.join(names)}\n"
            yield "| field | here | meaning |\n|---|---|---|"
            for name, field in modifiers[names[0]].items():
                unless = f" (not where it is {', '.join(map(repr, field.usual))})" if field.usual else ""
                yield f"| `{name}` | {LEVELS[field.level]} | {field.text.rstrip('.')}{unless} |"
            yield ""
    yield "## Modifiers without a counterpart\n\n| modifier | why |\n|---|---|"
    yield from (f"| {name} | {why.rstrip('.')} |" for name, why in UNSUPPORTED.items())
    yield from (f"| {name} | it only writes logs |" for name in sorted(IGNORED))
    yield ""

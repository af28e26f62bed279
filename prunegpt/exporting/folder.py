"""An ordinary transformers folder: safetensors, tokenizer, generation config, masks and a model card."""

from pathlib import Path

from prunegpt.errors import PruneGPTError
from prunegpt.exporting.base import (
    README,
    Export,
    ExportCheck,
    ExportError,
    ExportFormat,
    compare_logits,
    compare_weights,
)
from prunegpt.lm.models import load_model, round_to, save_model
from prunegpt.lm.tokenizers import load_tokenizer, tokenizer_fingerprint
from prunegpt.planning.sources import ABOUT, MASKS
from prunegpt.pruning.masks import load_masks, masks_hash, save_masks
from prunegpt.root import write_json
from prunegpt.stages.base import ModelState
from prunegpt.stages.measure import check_ledger, masked_views


def write(export: Export, folder: Path) -> None:
    """Writes the folder; the model is in float32 again then, with weights that its dtype holds."""
    state = export.state
    if state.pruned.masks:
        for name, view in masked_views(state).items():
            state.pruned.masks[name].apply(view.matrix)  # a weight that was multiplied by 0 may be -0
    if export.dtype != "float32":
        round_to(state.model, export.dtype)
    save_model(
        state.model,
        state.tokenizer,
        folder,
        processor=state.processor,
        dtype=export.dtype,
        max_shard_size=export.max_shard_size,
    )
    state.model.float()
    write_masks(state, folder)
    write_about(export, folder)


def write_masks(state: ModelState, folder: Path) -> None:
    """Writes the masks of a model beside its weights, where it has any."""
    pruned = state.pruned
    if pruned.masks:
        save_masks(pruned.masks, folder / MASKS, method=pruned.method, pattern=pruned.pattern, target=pruned.target)


def write_about(export: Export, folder: Path) -> None:
    """Writes the model card, and where the model came from as JSON."""
    (folder / README).write_text(export.card, encoding="utf-8")
    write_json(folder / ABOUT, dict(export.about))


def check(export: Export, folder: Path) -> list[ExportCheck]:
    """Loads the folder as anybody does, and compares weights, logits, tokenizer, generation config and masks."""
    state = export.state
    try:
        loaded = load_model(
            folder, dtype="float32", device="cpu", trust_remote_code=export.code is not None, code=export.code
        )
        tokenizer = None if export.code else load_tokenizer(folder)
    except PruneGPTError as error:
        raise ExportError(f"an export must load again; {folder.name} does not: {error}") from error
    found = [compare_weights(dict(state.model.named_parameters()), dict(loaded.named_parameters()))]
    found.append(compare_logits(state.model, loaded))
    if not found[-1].equal and (found[-1].difference or 0) > _ROUNDING:
        raise ExportError(
            f"an exported folder must give the logits of its model; they differ by {found[-1].difference:.3g}. This "
            "version of transformers may not save a field of its config: compare both config.json."
        )
    if tokenizer is not None:
        found.append(_tokenizer(state, tokenizer_fingerprint(tokenizer)))
    if state.pruned.masks:
        stored = load_masks(folder / MASKS)
        if stored.sha256 != masks_hash(state.pruned.masks):
            raise ExportError(f"an export must hold the masks of its model; {MASKS} holds others. Export it again.")
        check_ledger(state)
        found.append(ExportCheck("masks", True, None, f"every pruned weight is zero, sha256 {stored.sha256[:12]}"))
    return found


_ROUNDING = 1e-4  # of logits: buffers that are computed again


def _tokenizer(state: ModelState, fingerprint: str) -> ExportCheck:
    if fingerprint != tokenizer_fingerprint(state.tokenizer):
        raise ExportError("an export must hold the tokenizer of its model; the one that was saved gives other tokens.")
    return ExportCheck("tokenizer", True, None, f"fingerprint {fingerprint}")


FOLDER = ExportFormat("folder", ("float32", "bfloat16", "float16", "auto"), "", lambda export: None, write, check)

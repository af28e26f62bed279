"""Text that the model a chain starts from writes: sampled once for a key, a batch at a time, and kept in the root.

Calibration on a model's own text: Williams et al. 2024, "Self-calibration for language model quantization and pruning",
arXiv 2410.17170.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from prunegpt.errors import DataError
from prunegpt.lm.chat import prompts_of
from prunegpt.lm.data import read_conversations, read_rows
from prunegpt.lm.modes import evaluation_mode
from prunegpt.planning.inputs import Inputs, text_files
from prunegpt.root import Root, publishing, seal, whole, write_json
from prunegpt.spec.data import DataSpec, GenerateSpec
from prunegpt.spec.plan import StagePlan
from prunegpt.stages.base import ModelState

DOCUMENTS = "documents.jsonl"
_BATCH = 8  # documents that are written at a time: what is drawn depends on it
_SEEDS = 2**63 - 1


def folder_of(root: Root, generate: GenerateSpec) -> Path:
    """Where what is written is kept: documents.jsonl, each line a document's prompt and text, and generated.json."""
    return root.data / f"generated-{generate.key}"


def is_there(root: Root, generate: GenerateSpec) -> bool:
    """Whether it has been written."""
    return whole(folder_of(root, generate), DOCUMENTS, deep=True)


def generated_in(plan: StagePlan) -> Iterator[GenerateSpec]:
    """What a stage reads that its chain's model writes."""
    datasets: list[DataSpec | None] = [plan.data if plan.training else None]
    if plan.calibration:
        datasets += [part.data for part in plan.calibration.parts]
    yield from {data.generate.key: data.generate for data in datasets if data and data.generate}.values()


def ensure(
    generate: GenerateSpec,
    root: Root,
    inputs: Inputs,
    load: Callable[[], ModelState],
    *,
    dtype: torch.dtype,
    say: Callable[[str], None],
    stop: Callable[[], bool],
) -> bool:
    """Writes what is not there yet; what an earlier attempt has written is kept and continued.

    Every batch of documents has a seed of its own, so that an interrupted run comes to the same text.

    Args:
        load: gives the model that writes.
        dtype: of the arithmetic.
        say: takes a line of progress after each batch.
        stop: asked between batches.

    Returns:
        Whether it is there; False where `stop` ended it.

    Raises:
        DataError: the model cannot begin a document.
    """
    if is_there(root, generate):
        return True
    work = root.work(f"generated-{generate.key}")
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work.with_suffix(".lock")):
        if is_there(root, generate):
            return True
        written = work / DOCUMENTS
        lines = _whole_batches(written, generate.documents)
        state = load()
        starts = _prompts(generate, state.tokenizer, inputs)
        with written.open("a", encoding="utf-8") as file:
            for first in range(len(lines), generate.documents, _BATCH):
                if stop():
                    return False
                count = min(_BATCH, generate.documents - first)
                batch = [starts[(first + place) % len(starts)] for place in range(count)]
                texts = write(state, batch, generate, seed=generate.seed * _SEEDS + first, dtype=dtype)
                pairs = zip(batch, texts, strict=True)
                file.writelines(json.dumps({"prompt": prompt, "text": text}) + "\n" for (prompt, _), text in pairs)
                file.flush()
                say(f"  generated {first + count} of {generate.documents} documents")
        with publishing(folder_of(root, generate)) as temporary:
            shutil.copy2(written, temporary / DOCUMENTS)
            write_json(temporary / "generated.json", generate.model_dump(mode="json"))
            seal(temporary)
        shutil.rmtree(work, ignore_errors=True)
    return True


def _whole_batches(file: Path, documents: int) -> list[str]:
    """The lines that an earlier attempt has written, cut back to whole batches; the file then holds these."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    whole_lines = [line for line in lines if line.endswith("\n")][:documents]
    kept = whole_lines if len(whole_lines) == documents else whole_lines[: len(whole_lines) // _BATCH * _BATCH]
    file.write_text("".join(kept), encoding="utf-8")
    return kept


def _prompts(
    generate: GenerateSpec, tokenizer: PreTrainedTokenizerBase, inputs: Inputs
) -> Sequence[tuple[str, list[int]]]:
    """What documents begin with, as text and as tokens."""
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    prompts = generate.prompts
    if prompts is None:
        if begin is None:
            raise DataError(
                "a model begins a document of its own with its bos or eos token; its tokeniser has neither. Name a "
                "dataset as generate.prompts."
            )
        return [("", [begin])]
    source: dict[str, Any] = prompts.model_dump(include={"path", "name", "files", "revision"})
    with inputs.reading(text_files(prompts, generate.split)):
        if prompts.messages is not None:
            chats = read_conversations(split=generate.split, messages=prompts.messages, **source)
            texts = prompts_of(list(islice(chats, generate.documents)), tokenizer)
            ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            return list(zip(texts, ids, strict=True))
        rows = read_rows(split=generate.split, text_column=prompts.text_column, **source)
        rows = list(islice((row for row in rows if row.strip()), generate.documents))
        ids = tokenizer(rows, add_special_tokens=False, verbose=False)["input_ids"]
        lead = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        cut = [one[: generate.prompt_tokens] for one in ids]
        return [(tokenizer.decode(one), [*lead, *one]) for one in cut]


def write(
    state: ModelState,
    prompts: Sequence[tuple[str, list[int]]],
    generate: GenerateSpec,
    *,
    seed: int,
    dtype: torch.dtype,
) -> list[str]:
    """A document for each prompt, its text included. The random state of the process stays as it was."""
    model, tokenizer = state.model, state.tokenizer
    ends = ends_of(state)
    pad = next((one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id) if one is not None), 0)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=generate.temperature,
        top_k=generate.top_k,
        top_p=generate.top_p,
        max_new_tokens=generate.tokens,
        eos_token_id=ends or None,
        pad_token_id=pad,
    )
    longest = max(len(ids) for _, ids in prompts)
    ids = torch.tensor(
        [[pad] * (longest - len(one)) + one for _, one in prompts], device=model.device
    )  # [batch, length]
    seen = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for _, one in prompts], device=model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    half = torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32)
    with torch.random.fork_rng(devices=devices), torch.no_grad(), evaluation_mode(model), half:
        torch.manual_seed(seed % _SEEDS)
        found = model.generate(input_ids=ids, attention_mask=seen)[:, longest:]  # [batch, new tokens]
    chat = generate.prompts is not None and generate.prompts.messages is not None
    return [
        prompt + tokenizer.decode(_ended(row, set(ends), keep=chat), skip_special_tokens=not chat)
        for (prompt, _), row in zip(prompts, found, strict=True)
    ]


def ends_of(state: ModelState) -> list[int]:
    """The tokens that end a text: those of the model's generation config, else that of its tokeniser."""
    ends = state.model.generation_config.eos_token_id if state.model.generation_config else None
    ends = state.tokenizer.eos_token_id if ends is None else ends
    return [ends] if isinstance(ends, int) else list(ends or ())


def _ended(row: Tensor, stops: set[int], *, keep: bool) -> list[int]:
    """The tokens up to the first that ends a document, with it or without."""
    tokens: list[int] = row.tolist()
    place = next((place for place, token in enumerate(tokens) if token in stops), None)
    return tokens if place is None else tokens[: place + keep]

"""Layers as wide as those of an 8 B model, streamed: what the host holds at its peak is what is estimated.

In a process of its own, whose peak the system counts.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from transformers import LlamaConfig
from prunegpt.lm.models import load_model
from prunegpt.lm.skeleton import skeleton
from prunegpt.lm.views import block_matrices, memory_sizes, outline
from prunegpt.planning.memory import Memory
from prunegpt.pruning.oneshot import prune_oneshot

folder, width, inner, layers, windows, length = Path(sys.argv[1]), *map(int, sys.argv[2:])
heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True}
config = LlamaConfig(
    hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, vocab_size=512, dtype="bfloat16",
    max_position_embeddings=length, architectures=["LlamaForCausalLM"], bos_token_id=0, eos_token_id=0, **heads,
)
config.save_pretrained(folder)
empty = skeleton(json.loads((folder / "config.json").read_text()))
shards = {}
for name, tensor in empty.state_dict().items():  # a shard for each tensor: no two are in memory
    if name != "lm_head.weight":
        drawn = torch.randn(tensor.shape, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(len(shards)))
        shards[name] = f"model-{len(shards):05d}.safetensors"
        save_file({name: drawn * 0.02 if tensor.dim() > 1 else drawn * 0 + 1}, folder / shards[name])
(folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
del drawn

def held(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

before = held("VmRSS")
model = load_model(folder, dtype=torch.bfloat16, device="cpu")
tokens = torch.randint(512, (windows, length), generator=torch.Generator().manual_seed(0))
found = prune_oneshot(
    model, block_matrices(model), method="sparsegpt", sparsity=0.5, calibration=tokens, place=torch.device("cpu")
)
sizes = memory_sizes(outline(model), model.config)
memory = Memory(sizes, device="cpu", stored=2)
layer = memory.streamed("sparsegpt", frozenset({"gram"}), windows, length)
hidden = 4 * windows * length * width
print(json.dumps({
    "peak": held("VmHWM") - before, "sparsity": found.sparsity,
    "estimate": memory.weights + sizes.matrices + hidden + layer,
}))
"""
NOISE = 96 * 2**20  # bytes that libraries take once they are used


@pytest.mark.parametrize(
    ("width", "inner"), [(256, 4096), pytest.param(4096, 14336, marks=pytest.mark.slow, id="as wide as 8 B")]
)
def test_wide_layers_are_streamed_in_the_memory_that_is_estimated(width: int, inner: int, tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not count the peak of a process in /proc")
    shape = map(str, (width, inner, 2, 4, 128))
    one = {**os.environ, "OMP_NUM_THREADS": "1"}  # each thread has buffers of its own
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *shape]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["sparsity"] == pytest.approx(0.5, abs=1e-6)
    copied = 4 * inner**2  # by LAPACK while it factors the widest Gram matrix
    assert found["peak"] < found["estimate"] + copied + NOISE
    assert found["peak"] < 20 * 2**30

"""A trial over two machines, as torchrun starts it on each, comes to what one process comes to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunegpt.launch.distributed import free_port
from prunegpt.lm.models import save_model
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.planning.resolve import plan_data
from prunegpt.records import AttemptRecord
from prunegpt.root import Root
from prunegpt.trial import run_trial
from tests.support.running import write_attempt
from tests.support.together import check_alike
from tests.support.trained import llama

NODES = 2
PATIENCE = 500.0
PRUNE = {"sparsity": 0.5, "unit": "steps", "start": 1, "end": 3, "every": 1}


def attempt(root: Root, model: Path, text_files: dict[str, str]) -> Path:
    train = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.003, "optim": "sgd", "fsdp": True}
    base = {
        "model": str(model),
        "data": {"files": text_files, "block_size": 16, "max_train_blocks": 16},
        "evaluate": {"max_windows": 2},
        "train": train,
        "device": "cpu",
    }
    trials = [{"name": "one", "stages": [{"finetune": {"prune": PRUNE}}]}]
    (trial,) = plan_data({"name": "small", "base": base, "trials": trials}, root=root).trials
    return write_attempt(root, trial)


@pytest.mark.slow
def test_two_nodes_come_to_what_one_process_comes_to(text_files: dict[str, str], tmp_path: Path) -> None:
    """Each node has a launch of its own, and they meet at a port; as on machines that share the root's file system."""
    model = tmp_path / "model"
    save_model(llama(1, 16, heads=2, groups=1), load_tokenizer("builtin:tiny-gpt2"), model)
    one, over = (attempt(Root(tmp_path / name), model, text_files) for name in ("one", "over"))
    launch = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", str(NODES), "--nproc-per-node", "1"),
        *("--rdzv-id", "trial", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"),
        *("--local-addr", "127.0.0.1", "-m", "prunegpt", "trial", "run", str(over)),
    ]
    variables = {
        **os.environ,
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }  # else the nodes' names are looked up
    nodes = [subprocess.Popen(launch, env=variables) for _ in range(NODES)]
    alone = run_trial(one)
    assert [node.wait(PATIENCE) for node in nodes] == [0] * NODES
    together = AttemptRecord.read(over / "record.json")
    assert (alone.state, together.state) == ("finished", "finished"), together.trace
    assert (alone.stages[-1].devices, together.stages[-1].devices) == (1, NODES)
    assert AttemptRecord.read(over / "record-1.json").state == "finished"
    check_alike((one, alone), (over, together))

"""One-shot pruning by llm-compressor as its documentation has it, in an environment of its own.

    python prune_llmcompressor.py MODEL WINDOWS.npy OUT --method wanda --pattern 0:0 --ignore 're:.*lm_head'

Its last line of output has the seconds of `oneshot` alone, as JSON.
"""

import argparse
import json
import time

import numpy
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("windows")
parser.add_argument("out")
parser.add_argument("--method", choices=["wanda", "sparsegpt"], required=True)
parser.add_argument("--pattern", required=True)
parser.add_argument("--ignore", required=True)
arguments = parser.parse_args()

windows = numpy.load(arguments.windows)
rows = {"input_ids": windows.tolist(), "attention_mask": numpy.ones_like(windows).tolist()}
modifier = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[arguments.method]
recipe = modifier(sparsity=0.5, mask_structure=arguments.pattern, targets=["Linear"], ignore=[arguments.ignore])
model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="float32")
tokenizer = AutoTokenizer.from_pretrained(arguments.model)
wall, processor = time.perf_counter(), time.process_time()
oneshot(
    model=model,
    tokenizer=tokenizer,
    dataset=Dataset.from_dict(rows),
    recipe=recipe,
    num_calibration_samples=windows.shape[0],
    max_seq_length=windows.shape[1],
    shuffle_calibration_samples=False,  # the order of the sums, so that masks can be compared
)
seconds = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
model.save_pretrained(arguments.out, save_compressed=True)
tokenizer.save_pretrained(arguments.out)
print(json.dumps(seconds))

"""A multiple-choice task for lm-evaluation-harness, made from a text: the true continuation against others from it."""

import json
import random
from pathlib import Path

NAME = "continuation"
_CONTEXT, _ENDING = 12, 4  # words


def write_task(folder: Path, text: str, *, documents: int, name: str = NAME) -> Path:
    """A folder for `include_path`: the task file, and its data beside it.

    Each document has some words of one paragraph, and asks for those that follow among three others of that paragraph.
    """
    generator = random.Random(0)
    long = [words for line in text.splitlines() if len(words := line.split()) >= 4 * (_CONTEXT + _ENDING)]
    if not long:  # a text without paragraphs is one
        long = [text.split()]
    rows = []
    for _ in range(documents):
        words = generator.choice(long)
        starts = generator.sample(range(len(words) - _CONTEXT - _ENDING), 4)
        endings = [" " + " ".join(words[start + _CONTEXT : start + _CONTEXT + _ENDING]) for start in starts]
        gold = generator.randrange(4)
        endings[0], endings[gold] = endings[gold], endings[0]
        rows.append({"query": " ".join(words[starts[0] : starts[0] + _CONTEXT]), "choices": endings, "gold": gold})
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": metrics,
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    return folder

"""The model card of an export: what it is, what it was measured as, and where it came from."""

from collections.abc import Mapping
from typing import Any

_LOADING = {
    "folder": (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        "```"
    ),
    "packed": (
        "The weights are in `packed.safetensors`, zeros left out. `unpack.py` needs Python, PyTorch, NumPy and "
        "safetensors:\n\n```sh\npython unpack.py . ../dense   # an ordinary transformers folder\n```\n\n"
        "or in Python `unpack.load(FOLDER)`, name -> tensor."
    ),
}


def model_card(about: Mapping[str, Any], table: str, notes: tuple[str, ...] = ()) -> str:
    """README.md of an exported folder.

    Args:
        about: what export.json holds.
        table: rows of results, in Markdown; empty where nothing was measured.
        notes: on how the model came about.
    """
    base = about["base"]
    head = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": "[prunegpt, pruning]"}
    if base["license"]:
        head["license"] = base["license"]
    if base["hub"]:
        head["base_model"] = base["source"]
    parts = [
        "---\n" + "\n".join(f"{name}: {value}" for name, value in head.items()) + "\n---",
        f"# {about['model']}",
        _summary(about),
        _LOADING.get(about["format"], ""),
        f"## Results\n\n{table.strip()}" if table else "",
        _provenance(about),
        "\n".join(f"- {note}" for note in notes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(about: Mapping[str, Any]) -> str:
    base = about["base"]
    weights = f"{about['parameters']:,} parameters, {about['nonzero']:,} of them not zero"
    licence = (
        f"The license of {base['source']} is {base['license']}, and applies to this model too."
        if base["license"]
        else f"The license of {base['source']} was not found: it applies to this model too, so check it before you "
        "share this."
    )
    return f"Made from {base['source']} with PruneGPT. {weights}; weights in {about['dtype']}. {licence}"


def _provenance(about: Mapping[str, Any]) -> str:
    lines = [f"- stage `{stage['kind']}`, key `{stage['key']}`" for stage in about["stages"]]
    if about["evaluation"]:
        found = about["evaluation"]
        lines.append(
            f"- protocol {found['protocol']}, split {found['split'] or 'not named'}, {found['tokens']:,} tokens"
        )
    lines += [f"- dataset {name}" for name in about["datasets"]]
    lines.append("- " + ", ".join(f"{name} {version}" for name, version in about["versions"].items()))
    lines.append("- `export.json` holds all of this, and the configuration of the whole chain.")
    return "## Provenance\n\n" + "\n".join(lines)

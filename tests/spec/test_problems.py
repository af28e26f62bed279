"""What is wrong with a field: the path that `--set` takes, its line, the rule, the value, the way out."""

import re
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from prunegpt.errors import Problem
from prunegpt.spec.part import Part
from prunegpt.spec.problems import messages_of, problems_of
from prunegpt.spec.read import parse_document
from prunegpt.spec.schema import Spec

HEADER = "name: words\nbase: {}\ntrials:\n"
TRIAL = HEADER.count("\n") + 1  # line of the one trial


def problems(text: str) -> list[Problem]:
    document = parse_document(text, "x")
    try:
        Spec.model_validate(document.data)
    except ValidationError as error:
        return problems_of(error, Spec, document)
    return []


# Flow text of a trial without its name -> place below trials.0, message.
TRIALS = {
    "unknown key": ("sede: 5", "sede", r"unknown key 'sede'\. Did you mean 'seeds'\? Valid: seeds, data, device"),
    "unknown stage": ("stages: [{prnue: {}}]", "stages.0.prnue", r"unknown key 'prnue'\. Did you mean 'prune'\?"),
    "unknown stage as a word": ("stages: [prnue]", "stages.0", r"unknown key 'prnue'\. Did you mean 'prune'\?"),
    "unknown key in a stage": (
        "stages: [{prune: {sparsity: 0.5, tragets: x}}]",
        "stages.0.prune.tragets",
        r"unknown key 'tragets'\. Did you mean 'targets'\?",
    ),
    "unknown key of a model": ("model: {source: a, revison: b}", "model.revison", r"Did you mean 'revision'\?"),
    "two stages in one": (
        "stages: [{prune: {sparsity: 0.5}, finetune: {}}]",
        "stages.0",
        "a stage must be exactly one of finetune, prune, shrink, distill; it has 2",
    ),
    "no stage in one": ("stages: [{}]", "stages.0", "it has 0"),
    "a number for a list": ("stages: 5", "stages", r"must be a list, got 5\."),
    "text for a mapping": ("train: fast", "train", r"must be a mapping, got 'fast'\."),
    "text for a number": (
        "data: {path: a, block_size: many}",
        "data.block_size",
        "must be a whole number, got 'many'",
    ),
    "a fraction for a count": ("data: {path: a, block_size: 1.5}", "data.block_size", r"a whole number, got 1\.5"),
    "a number out of range": (
        "data: {path: a, block_size: 1}",
        "data.block_size",
        "greater than or equal to 2, got 1",
    ),
    "text for a truth value": (
        "evaluate: {skip: perhaps}",
        "evaluate.skip",
        "must be true or false, got 'perhaps'",
    ),
    "no such choice": (
        "precision: float8",
        "precision",
        "must be 'auto', 'float32', 'bfloat16' or 'float16', got 'float8'",
    ),
    "a percentage": (
        "stages: [{prune: {sparsity: 90}}]",
        "stages.0.prune.sparsity",
        r"at least 0 and below 1, got 90\. Did you mean 0\.9\?",
    ),
    "a sparsity of one": ("stages: [{prune: {sparsity: 1}}]", "stages.0.prune.sparsity", r"below 1, got 1\.$"),
    "a negative sparsity": ("stages: [{prune: {sparsity: -0.1}}]", "stages.0.prune.sparsity", r"got -0\.1\.$"),
    "not a number": (
        "stages: [{prune: {sparsity: .nan}}]",
        "stages.0.prune.sparsity",
        "must be a finite number, got nan",
    ),
    "infinity": (
        "stages: [{distill: {teacher: a, temperature: .inf}}]",
        "stages.0.distill.temperature",
        "a finite number, got inf",
    ),
    "infinity in a training argument": (
        "train: {learning_rate: .inf}",
        "train.learning_rate",
        "learning_rate must be a finite number, got inf",
    ),
    "no sparsity": (
        "stages: [{prune: {}}]",
        "stages.0.prune",
        r"pruning needs a sparsity \(such as 0.5\) or a pattern",
    ),
    "a pattern that is none": (
        "stages: [{prune: {pattern: half}}]",
        "stages.0.prune.pattern",
        "pattern must be unstructured, N:M .*, got 'half'",
    ),
    "a pattern upside down": (
        "stages: [{prune: {pattern: '4:2'}}]",
        "stages.0.prune.pattern",
        r"0 < N < M must hold, got 4:2",
    ),
    "a block without width": (
        "stages: [{prune: {pattern: [4, 0], sparsity: 0.5}}]",
        "stages.0.prune.pattern",
        r"must be at least 1, got \[4, 0\]",
    ),
    "a pattern against a sparsity": (
        "stages: [{prune: {pattern: '2:4', sparsity: 0.9}}]",
        "stages.0.prune",
        r"pattern 2:4 fixes the sparsity at 0\.5; sparsity is 0\.9\. Remove one",
    ),
    "method and criterion": (
        "stages: [{prune: {method: magnitude, criterion: random, sparsity: 0.5}}]",
        "stages.0.prune",
        "method and criterion are two names of one field. Remove one",
    ),
    "unknown method": (
        "stages: [{prune: {method: wnada, sparsity: 0.5}}]",
        "stages.0.prune.method",
        r"unknown criterion or solver 'wnada'\. Did you mean 'wanda'\? Valid: wanda, ",
    ),
    "unknown schedule": (
        "stages: [{finetune: {prune: {sparsity: 0.5, schedule: cubik}}}]",
        "stages.0.finetune.prune.schedule",
        r"unknown schedule 'cubik'\. Did you mean 'cubic'\?",
    ),
    "unknown loss": (
        "stages: [{distill: {teacher: a, loss: kl}}]",
        "stages.0.distill.loss",
        r"unknown distillation loss 'kl'\. .*Valid: .*forward_kl",
    ),
    "unknown protocol": (
        "evaluate: {protocol: block}",
        "evaluate.protocol",
        r"unknown protocol 'block'\. Did you mean 'blocks'\?",
    ),
    "unknown allocation": (
        "stages: [{prune: {sparsity: 0.5, allocation: gobal}}]",
        "stages.0.prune",
        r"unknown allocation 'gobal'\. Did you mean 'global'\?",
    ),
    "end before start": (
        "stages: [{finetune: {prune: {sparsity: 0.5, start: 2, end: 1}}}]",
        "stages.0.finetune.prune",
        "end must not come before start; start is 2 and end 1",
    ),
    "no teacher": ("stages: [{distill: {}}]", "stages.0.distill.teacher", r"teacher is required\."),
    "no teacher, as a word": ("stages: [distill]", "stages.0.distill.teacher", r"teacher is required\."),
    "a teacher of no kind": (
        "stages: [{distill: {teacher: 5}}]",
        "stages.0.distill.teacher",
        r"must be text or a mapping, got 5\.",
    ),
    "an allocation of no kind": (
        "stages: [{prune: {sparsity: 0.5, allocation: 5}}]",
        "stages.0.prune.allocation",
        r"must be text or a mapping, got 5\.",
    ),
    "one branch of a union": (
        "stages: [{prune: {sparsity: 0.5, allocation: {x: 50}}}]",
        "stages.0.prune.allocation.x",
        r"below 1, got 50\. Did you mean 0\.5\?",
    ),
    "a batch of no kind": (
        "evaluate: {batch_size: much}",
        "evaluate.batch_size",
        "must be a whole number or 'auto', got 'much'",
    ),
    "two texts": (
        "data: {path: a, files: {train: b}}",
        "data",
        r"data must name either path or files; it has both\. Remove one",
    ),
    "no files": (
        "data: {files: {train: []}}",
        "data.files.train",
        "a list must name at least one value here; it is empty",
    ),
    "an unknown training argument": (
        "train: {learnig_rate: 1}",
        "train.learnig_rate",
        r"unknown training argument 'learnig_rate'\. Did you mean 'learning_rate'\?",
    ),
    "a training argument of ours: seed": ("train: {seed: 1}", "train.seed", r"seed is not taken: use `seeds`\."),
    "a training argument of ours: bf16": (
        "train: {bf16: true}",
        "train.bf16",
        r"bf16 is not taken: use `precision`\.",
    ),
    "a training argument of ours, in a stage": (
        "stages: [{finetune: {train: {output_dir: x}}}]",
        "stages.0.finetune.train.output_dir",
        "output_dir is not taken: a stage has its folder",
    ),
    "a training argument of another type": (
        "train: {max_steps: many}",
        "train.max_steps",
        r"max_steps must be int, got 'many' \(str\)",
    ),
    "a training argument of another choice": (
        "train: {lr_scheduler_type: cosin}",
        "train.lr_scheduler_type",
        r"unknown lr_scheduler_type 'cosin'\. Did you mean 'cosine'\?",
    ),
    "a negative seed": ("seeds: [1, -1]", "seeds.1", "greater than or equal to 0, got -1"),
    "a huge seed": ("seeds: [4294967296]", "seeds.0", r"less than 4294967296, got 4294967296"),
    "no seed": ("seeds: []", "seeds", "a list must name at least one value here; it is empty"),
    "nothing to vary over": (
        "vary: {device: []}",
        "vary.device",
        "a list must name at least one value here; it is empty",
    ),
    "one value to vary over": ("vary: {device: cpu}", "vary.device", "must be a list, got 'cpu'"),
}
assert TRIALS


@pytest.mark.parametrize(("trial", "where", "message"), TRIALS.values(), ids=TRIALS.keys())
def test_a_bad_field_of_a_trial_is_one_problem_at_its_line(trial: str, where: str, message: str) -> None:
    found = problems(f"{HEADER}  - {{name: one, {trial}}}\n  - {{name: two}}\n")
    assert [(item.where, item.line) for item in found] == [(f"trials.0.{where}", TRIAL)]
    assert re.search(message, found[0].message), found[0].message


SPECS = {
    "no name": ("trials: [{name: a}]", "name", "name is required."),
    "no trials": ("name: x", "trials", "trials is required."),
    "no trial": ("name: x\ntrials: []", "trials", "a list must name at least one value here; it is empty"),
    "a name that is no folder's": (
        "name: ../x\ntrials: [{name: a}]",
        "name",
        r"a name holds letters, digits and .*, got '\.\./x'",
    ),
    "a trial's name with a blank": ("name: x\ntrials: [{name: a b}]", "trials.0.name", "got 'a b'"),
    "a trial without a name": ("name: x\ntrials: [{}]", "trials.0.name", "name is required"),
    "a trial that is none": ("name: x\ntrials: [7]", "trials.0", "must be a mapping, got 7"),
    "a misspelt section": (
        "name: x\ntrails: []\ntrials: [{name: a}]",
        "trails",
        "unknown key 'trails'. Did you mean 'trials'",
    ),
    "a bad base": (
        "name: x\nbase: {devise: cpu}\ntrials: [{name: a}]",
        "base.devise",
        "unknown key 'devise'. Did you mean 'device'",
    ),
    "names in base": ("name: x\nbase: {name: y}\ntrials: [{name: a}]", "base.name", "unknown key 'name'"),
    "a table without rows": (
        "name: x\ntrials: [{name: a}]\ntables: [{title: t, rows: [], columns: [model]}]",
        "tables.0.rows",
        "at least one value",
    ),
    "a table without columns": (
        "name: x\ntrials: [{name: a}]\ntables: [{title: t, rows: [a]}]",
        "tables.0.columns",
        "columns is required",
    ),
}
assert SPECS


@pytest.mark.parametrize(("text", "where", "message"), SPECS.values(), ids=SPECS.keys())
def test_a_bad_spec_is_one_problem(text: str, where: str, message: str) -> None:
    found = problems(text)
    assert [item.where for item in found] == [where]
    assert re.search(message, found[0].message)


def test_all_problems_are_told_together_each_with_its_line() -> None:
    found = problems(
        """\
name: x
base:
  train:
    learnig_rate: 1
    bf16: true
trials:
  - name: a
    stages:
      - prune:
          sparsity: 90
          method: wnada
  - name: b
    sede: 1
tables:
  - title: t
    rows: [a]
    colums: [model]
"""
    )
    assert {(item.line, item.where) for item in found} == {
        (4, "base.train.learnig_rate"),
        (5, "base.train.bf16"),
        (10, "trials.0.stages.0.prune.sparsity"),
        (11, "trials.0.stages.0.prune.method"),
        (13, "trials.1.sede"),
        (17, "tables.0.colums"),
        (15, "tables.0.columns"),
    }


def test_a_long_value_is_shown_shortened() -> None:
    (found,) = problems(f"{HEADER}  - {{name: a, device: {'x' * 500}}}\n")
    assert len(found.message) < 250


# What is written shorter means the same.
SAME = {
    "a model": ("model: gpt2", "model: {source: gpt2}"),
    "a seed": ("seeds: 3", "seeds: [3]"),
    "a stage": ("stages: [finetune]", "stages: [{finetune: {}}]"),
    "an empty stage": ("stages: [{finetune: }]", "stages: [{finetune: {}}]"),
    "a layer": ("stages: [{prune: {sparsity: 0.5, layers: 1}}]", "stages: [{prune: {sparsity: 0.5, layers: [1]}}]"),
    "a target": ("stages: [{prune: {sparsity: 0.5, targets: x}}]", "stages: [{prune: {sparsity: 0.5, targets: [x]}}]"),
    "a file": ("data: {files: {train: x}}", "data: {files: {train: [x]}}"),
    "a criterion": (
        "stages: [{prune: {criterion: random, sparsity: 0.5}}]",
        "stages: [{prune: {method: random, sparsity: 0.5}}]",
    ),
    "a block": (
        "stages: [{prune: {pattern: [4, 4], sparsity: 0.5}}]",
        "stages: [{prune: {pattern: '[4,4]', sparsity: 0.5}}]",
    ),
    "a teacher": ("stages: [{distill: {teacher: {model: x}}}]", "stages: [{distill: {teacher: {model: {source: x}}}}]"),
    "a number": ("train: {learning_rate: 1}", "train: {learning_rate: 1.0}"),
    "a count": ("train: {warmup_steps: 10.0}", "train: {warmup_steps: 10}"),
}
assert SAME


@pytest.mark.parametrize(("short", "long"), SAME.values(), ids=SAME.keys())
def test_shorter_ways_of_writing(short: str, long: str) -> None:
    read = [Spec.model_validate(parse_document(f"{HEADER}  - {{name: a, {text}}}", "x").data) for text in (short, long)]
    assert read[0].model_dump_json() == read[1].model_dump_json()


FIGURES = {
    "18.34": (18.34, None),
    "30": (30.0, None),
    ".inf": (None, "inf"),
    "n/a": (None, "n/a"),
    "{value: 2, note: x}": (2.0, None),
    "{perplexity: 3}": (3.0, None),
    '{"perplexity:c4": {value: 4, source: x, tolerance: 0.1}}': (4.0, None),
}
assert FIGURES


@pytest.mark.parametrize(("text", "expected"), FIGURES.items(), ids=FIGURES.keys())
def test_published_figures_are_numbers_or_what_was_printed(
    text: str, expected: tuple[float | None, str | None]
) -> None:
    table = f"tables: [{{title: t, rows: [a], columns: [model], reported: {{a: {text}}}}}]"
    spec = Spec.model_validate(parse_document(f"{HEADER}  - {{name: a}}\n{table}", "x").data)
    (figure,) = spec.tables[0].reported["a"].values()
    assert (figure.value, figure.text) == expected


def test_a_list_whose_items_are_refused_is_not_also_too_short() -> None:
    found = problems(f"figures: [{{name: a, formats: [gif]}}]\n{HEADER}  - {{name: a}}\n")
    assert [(one.where, one.message) for one in found] == [
        ("figures.0.formats.0", "must be 'pdf', 'svg' or 'png', got 'gif'. Choose one of them.")
    ]
    assert [one.where for one in problems(f"figures: [{{name: a, formats: []}}]\n{HEADER}  - {{name: a}}\n")] == [
        "figures.0.formats"
    ]


def test_what_is_of_trials_and_written_beside_them_is_written_in_base() -> None:
    """As `--set evaluate.block_size=64` does."""
    (problem,) = problems("name: words\nbase: {}\ntrials: [{name: a}]\nevaluate: {block_size: 64}\n")
    assert problem.message.endswith(" Write base.evaluate.")
    (other,) = problems("name: words\nbase: {}\ntrials: [{name: a}]\nzzz: 1\n")
    assert "Write" not in other.message


def test_a_list_that_is_too_short_is_reported_in_our_words() -> None:
    (problem,) = problems(
        "name: words\nbase: {}\ntrials: [{name: a}]\nfigures: [{name: f, kind: pareto, formats: []}]\n"
    )
    assert problem.message == "must have at least 1 value, got []. Fill it or remove the key."


BAD = ("x", "", 1.5, -1, 0, 10**12, True, float("nan"), [], [[]], {}, {"x": 1}, None)


def parts(kind: type[Part] = Part) -> Iterator[type[Part]]:
    for one in kind.__subclasses__():
        yield one
        yield from parts(one)


def test_whatever_is_wrong_with_any_field_is_a_rule_a_value_and_a_hint() -> None:
    """Every kind of error that pydantic finds itself, of every field that a spec may have."""
    kinds: set[str] = set()
    for part in sorted({one for one in parts() if one.__module__.startswith("prunegpt.spec.")}, key=repr):
        for field in part.model_fields:
            for value in BAD:
                try:
                    part.model_validate({field: value})
                except ValidationError as error:
                    found = {one["type"] for one in error.errors()}
                    if "value_error" in found:  # in words of our own
                        continue
                    kinds |= found
                    for path, message in messages_of(error, part, {field: value}):
                        assert re.search(r"\. [A-Z`].*[.?]$", message, re.DOTALL), (part.__name__, path, message)
    assert len(kinds) > 15, kinds

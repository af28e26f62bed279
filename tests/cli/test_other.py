"""doctor, recipe, help, and what the command line imports."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from prunegpt.cli import app
from prunegpt.cli.progress import follow
from prunegpt.cli.tables import print_sparsities
from prunegpt.errors import PruneGPTError
from prunegpt.sweep.events import Event, Queued, SweepStarted, TrialFinished, TrialStarted
from tests.support.small import Invoke, write_spec
from tests.support.specs import plan_of
from tests.support.study import make_root

CHECKOUT = Path(__file__).resolve().parent.parent.parent
RECIPES = CHECKOUT / "sweeps" / "recipes"


def commands() -> list[list[str]]:
    """Every command as its words."""
    found = []

    def walk(command: object, words: list[str]) -> None:
        inner = getattr(command, "commands", None)
        if inner is None:
            found.append(words)
        for name, sub in (inner or {}).items():
            if not sub.hidden:
                walk(sub, [*words, name])

    walk(typer.main.get_command(app), [])
    return found


def test_the_list_of_commands_is_whole() -> None:
    assert ["sweep", "check"] in commands()
    assert len(commands()) >= 12


@pytest.mark.parametrize("words", commands())
def test_every_command_has_help_with_an_example(invoke: Invoke, words: list[str]) -> None:
    assert "Example: prunegpt" in " ".join(invoke(*words, "--help").split())


def test_doctor_says_where_results_go(invoke: Invoke, tmp_path: Path) -> None:
    report = json.loads(invoke("doctor", "--json"))
    assert report["root"]["path"] == str(tmp_path / "runs")
    assert report["packages"]["torch"]
    assert report["devices"][0]["name"] == "cpu"


def test_the_studys_recipe_has_as_many_updates_as_sparseml(invoke: Invoke) -> None:
    text = invoke("recipe", "show", RECIPES / "90sparse.yaml", "--steps-per-epoch", "2318", "--json")
    (pruning,) = json.loads(text)["stages"][0]["prunings"]
    assert pruning["updates"]["count"] == 388


def test_a_recipe_is_matched_with_the_built_in_model(invoke: Invoke) -> None:
    shown = invoke("recipe", "show", RECIPES / "90sparse.yaml", "--model", "builtin:tiny-gpt2", "--json")
    assert "transformer.h.3.mlp.c_proj.weight" in shown
    assert "Did you mean 'builtin:tiny-gpt2'" in invoke(
        "recipe", "show", RECIPES / "90sparse.yaml", "--model", "builtin:tiny-gpt", fails=True
    )


def test_a_recipe_is_converted(invoke: Invoke, tmp_path: Path) -> None:
    invoke("recipe", "convert", RECIPES / "90sparse.yaml", "--out", tmp_path / "new.yaml")
    assert "sparsity: 0.9" in (tmp_path / "new.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "status", "--json"], ["sweep", "run", "--help"]])
def test_what_needs_no_tensor_does_not_import_torch(tmp_path: Path, arguments: list[str]) -> None:
    assert_light(tmp_path, arguments)


def test_a_spec_whose_datasets_were_counted_is_checked_without_torch(
    invoke: Invoke, tmp_path: Path, model_folder: Path, text_files: dict[str, str]
) -> None:
    stages = ["finetune", {"prune": {"method": "wanda", "sparsity": 0.5, "calibration": {"windows": 2}}}]
    base = {"model": str(model_folder), "data": {"files": text_files, "block_size": 32}}
    path = write_spec(tmp_path / "s.yaml", {"name": "s", "base": base, "trials": [{"name": "a", "stages": stages}]})
    first = invoke("sweep", "check", path)
    assert assert_light(tmp_path, ["sweep", "check", path]) == first


def assert_light(tmp_path: Path, arguments: list[str]) -> str:
    """Neither torch nor transformers is imported by a command; what it prints."""
    code = (
        "import sys; from prunegpt.cli import main\n"
        f"sys.argv = ['prunegpt', *{arguments!r}]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_experts_of_a_parameter_are_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"q.weight": 0.5, "down[0]": 0.5, "down[1]": 0.5, "up[0]": 0.4, "up[1]": 0.6}
    print_sparsities(given)
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert [re.split(r"\s{2,}", row.rstrip()) for row in rows] == [
        ["q.weight", "0.5"],
        ["down (2 experts)", "0.5"],
        ["up (2 experts)", "0.4 to 0.6"],
    ]


@pytest.mark.parametrize("words", commands())
def test_help_shows_every_text_as_it_was_written(invoke: Invoke, words: list[str]) -> None:
    """No bracket is taken for markup, no summary is cut, and a flag takes no value."""
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    shown = " ".join(invoke(*words, "--help").split())
    for parameter in command.params:
        assert " ".join((getattr(parameter, "help", None) or "").split()) in shown
    assert "<bool>" not in shown
    parent = " ".join(invoke(*words[:-1], "--help").split())
    assert f"{words[-1]} " in parent
    assert "..." not in parent.replace("COMMAND [ARGS]...", "")


@pytest.mark.parametrize(("end", "expected"), [({"n_trials": 7}, 8), ({"max_tokens": 1000}, None)])
def test_the_bar_of_a_search_ends_where_the_search_ends(
    end: dict[str, int], expected: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"train.learning_rate": {"low": 0.1, "high": 1.0}}
    plan = plan_of({"name": "dense"}, {"name": "t-{number}", "stages": ["finetune"], "search": {"space": space, **end}})
    assert plan.expected == expected
    with follow(plan) as show:
        show(SweepStarted(plan.name, 1, 0))
    shown = capsys.readouterr().err
    assert ("t-{number} suggests trials: 7" in shown) is (expected is not None)


TRAIN = "train --model_name_or_path m --output_dir o --train_file t.txt"


@pytest.mark.parametrize(
    ("line", "options", "other"),
    [
        ("eval m --tasks t --max-windows 5 --split test", "--split or --max-windows", "--data"),
        ("prune m out -m magnitude -s 0.5 --protocol stream", "--protocol", "--data"),
        ("shrink m out --layers 1 --bos", "--bos", "--data"),
        ("table study --archive kept --format csv", "--format", "tables that are printed"),
        ("table study --update page.md -f csv", "--format", "tables that are printed"),
        ("compare study/finetuned study/recovered --json -f csv", "--format", "tables that are printed"),
        ("figure study --out a.pdf", "--out", "the name of a figure"),
        ("sweep fields study --update a.md", "--update", "the fields of specs"),
        ("sweep fields --json", "--json", "the name of a sweep"),
        ("recipe convert r.yaml --teacher t", "--teacher", "--stages"),
        ("doctor --yes", "--yes", "--repair"),
        ("reproduce s.yaml --no-run --slots 2", "--slots", "--run"),
        (f"{TRAIN} --do_eval --recipe r.yaml", "--recipe", "--do_train"),
        (f"{TRAIN} --do_train --eval_steps 5", "--eval-steps", "--evaluation_strategy steps"),
        (f"{TRAIN} --do_train --dataset_config_name raw", "--dataset-config-name", "--dataset_name"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, options: str, other: str
) -> None:
    make_root(tmp_path / "runs", windows=False)
    monkeypatch.chdir(tmp_path)
    told = invoke(*line.split(), fails=True)
    assert told == f"{options} would have no effect here: it goes with {other}. Add that, or leave it out."
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_set_of_what_has_no_spec_is_refused(invoke: Invoke, tmp_path: Path) -> None:
    make_root(tmp_path / "runs", windows=False)
    given = ("--set", "name=other")
    assert "overrides change a spec; study is a stored sweep" in invoke("table", "study", *given, fails=True)
    invoke("table", "study", "--archive", tmp_path / "kept")
    told = invoke("table", tmp_path / "kept", *given, fails=True)
    assert "--set would have no effect here: it goes with a spec file." in told


@pytest.mark.parametrize(
    ("flags", "evaluated", "train"),
    [
        (("--evaluation_strategy", "epoch"), True, {"eval_strategy": "epoch", "save_strategy": "no"}),
        (("--save_steps", "5"), False, {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 5}),
    ],
)
def test_train_takes_strategies_as_transformers_does(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: Any, evaluated: bool, train: Any
) -> None:
    seen: list[Any] = []

    def planned(spec: Any, **_: Any) -> None:
        seen.append(spec)
        raise PruneGPTError("far enough")

    monkeypatch.setattr("prunegpt.planning.resolve.plan_data", planned)
    monkeypatch.chdir(tmp_path)
    assert invoke(*TRAIN.split(), "--do_train", *flags, fails=True) == "far enough"
    assert seen[0]["base"]["evaluate"]["skip"] is not evaluated
    (stage,) = seen[0]["trials"][0]["stages"]
    assert stage["finetune"]["train"] == train
    assert stage["finetune"]["keep_checkpoints"] is (train["save_strategy"] != "no")


def shown(capsys: pytest.CaptureFixture[str], event: Event) -> str:
    with follow(plan_of({"name": "dense"})) as show:
        show(event)
    return capsys.readouterr().err


@pytest.mark.parametrize("runs", ["words", "other"])
def test_a_sweep_that_waits_for_itself_says_so(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, Queued("words", 1, 1, (), runs, "process 7 on here", 0, 1))
    assert ("That is this very sweep: `prunegpt sweep watch words" in told) is (runs == "words")


@pytest.mark.parametrize(("attempt", "which"), [(1, ""), (2, "attempt 2 ")])
def test_seconds_of_a_later_attempt_are_said_to_be_its_own(
    attempt: int, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"words/a: {which}started, 0" in shown(capsys, TrialStarted("words/a", attempt, "folder", 2, 0))
    assert f"words/a: {which}finished in 3 s" in shown(capsys, TrialFinished("words/a", attempt, 3.0, 1.5, None))


def test_status_filters_sorts_and_groups(invoke: Invoke, tmp_path: Path) -> None:
    make_root(tmp_path / "runs", windows=False)

    def found(*more: str) -> Any:
        return json.loads(invoke("sweep", "status", "study", "--json", *more))

    trials = found("--where", "sparsity > 0.8 and method == 'wanda'", "--columns", "method,own_seconds")["trials"]
    assert [(one["name"], one["method"], one["own_seconds"]) for one in trials] == [("wanda-0.9", "wanda", 60.5)]
    sizes = [one["perplexity"] for one in found("--sort=-perplexity", "--where", "perplexity is not None")["trials"]]
    assert sizes == sorted(sizes, reverse=True)
    groups = {one["by"]["method"]: one for one in found("--group-by", "method")["groups"]}
    wanda = groups["wanda"]["figures"]["sparsity"]
    assert (wanda["count"], round(wanda["mean"], 9), wanda["low"], wanda["high"]) == (5, 0.7, 0.5, 0.9)
    assert [one["name"] for one in found("--where", groups["wanda"]["where"])["trials"]] == groups["wanda"]["trials"]
    text = invoke("sweep", "status", "study", "--group-by", "method")
    assert "70.0% ± 15.8%" in text


def test_every_field_that_is_listed_is_a_column(invoke: Invoke, tmp_path: Path) -> None:
    make_root(tmp_path / "runs", windows=False)
    names = [one["name"] for one in json.loads(invoke("sweep", "fields", "study", "--json"))]
    assert {"perplexity", "method", "config.seed", "last.loss"} <= set(names)
    assert len(set(names)) == len(names)
    shown = json.loads(invoke("sweep", "status", "study", "--json", "--columns", ",".join(names)))["trials"][0]
    assert len(names) > 60
    assert {name.removeprefix("config.") for name in names} <= set(shown)
    message = invoke("sweep", "status", "study", "--where", "perplexty < 3", fails=True)
    assert "Did you mean 'perplexity'?" in message
    assert "`prunegpt sweep fields study` lists all" in message

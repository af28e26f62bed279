"""Whatever a file or a command line holds, what comes is a result or an error meant for people: never a trace.

A few hundred cases a run; `make test-all` makes ten thousand of them.
"""

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from typer.testing import CliRunner

from prunegpt.cli import WAYS_OUT, app, main
from prunegpt.errors import PruneGPTError, SpecError
from prunegpt.planning.resolve import plan_data
from prunegpt.registry import RENDERERS
from prunegpt.report.rows import with_planned
from prunegpt.report.tables import build_table
from prunegpt.spec.columns import COLUMNS
from prunegpt.spec.plan import SweepPlan
from prunegpt.spec.read import parse_document, read_document
from tests.robust.strategies import ODD_NUMBERS, ODD_TEXTS, SCALARS, anything, changed, damaged
from tests.support.recipes import TEXTS as RECIPES
from tests.support.recipes import through

SPECS = Path(__file__).resolve().parents[2] / "sweeps"
TEXTS = [(SPECS / name).read_text(encoding="utf-8") for name in ("quickstart.yaml", "distill90.yaml", "recover90.yaml")]
QUICKSTART = parse_document(TEXTS[0], "quickstart.yaml").data
SEARCH = {
    "name": "search",
    "base": QUICKSTART["base"],
    "failures": {"retries": {"out-of-memory": 2}, "heartbeat": 60},
    "early_stop": {"method": "median"},
    "trials": [
        {"name": "zero-shot"},
        {
            "name": "found",
            "stages": [{"finetune": {"train": {"max_steps": 10}}}],
            "search": {
                "sampler": "tpe",
                "n_trials": 3,
                "space": {"stages.0.finetune.train.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}},
            },
        },
    ],
}
WANDB = {
    "method": "random",
    "name": "agents",
    "run_cap": 5,
    "metric": {"name": "perplexity", "goal": "minimize"},
    "early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 2},
    "parameters": {
        "train.learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
        "stages.0.finetune.prune.sparsity": {"values": [0.5, 0.9], "probabilities": [0.3, 0.7]},
        "train.warmup_steps": {"distribution": "q_normal", "mu": 40, "sigma": 3, "q": 1},
        "train.max_steps": {"value": 10},
    },
    "prunegpt": {
        "base": QUICKSTART["base"],
        "trials": [{"name": "a", "stages": [{"finetune": {"prune": {"sparsity": 0.5}}}]}],
    },
}
TABLES = [
    *QUICKSTART["tables"],
    {"title": "x", "rows": [{"trial": "layer-*", "label": "{layer}"}], "columns": sorted(COLUMNS)},
]
TIMED = {
    **QUICKSTART["base"],
    "evaluate": [QUICKSTART["base"]["evaluate"], {"speed": {"prompt": 32, "generate": 8}}],
}  # for columns of speed
KEYS = st.sampled_from(
    sorted(
        {"name", "base", "trials", "tables", "stages", "vary", "search", "space", "train", "prune", "distill", "model"}
    )
)
ODD = SCALARS | anything(KEYS)


def planned(data: Any) -> SweepPlan | None:
    """The plan, or None where data is refused in words."""
    try:
        return plan_data(data)
    except SpecError as error:
        problems = error.problems
    assert problems
    for problem in problems:
        assert len(problem.message) > 12, problem
        assert "Traceback" not in problem.message
        assert " object at 0x" not in problem.message  # says nothing to anybody
    return None


def told(action: Callable[[], Any]) -> Any:
    """What comes of an action; errors meant for people are let go."""
    try:
        return action()
    except PruneGPTError as error:
        message = str(error)
    assert len(message) > 12
    return None


def spec(data: Any) -> None:
    if not isinstance(data, dict):
        return  # a file that holds no mapping is refused as text
    plan = planned(data)
    if plan is not None:
        assert SweepPlan.model_validate_json(plan.model_dump_json()) == plan


def text(content: str) -> None:
    told(lambda: planned(parse_document(content, "fuzz.yaml").data))


def raw(content: bytes) -> None:
    path = Path("fuzz.yaml")
    path.write_bytes(content)
    told(lambda: planned(read_document(path).data))


def override(given: tuple[str, Any]) -> None:
    path, value = given
    told(lambda: plan_data(QUICKSTART, overrides=[f"{path}={value}"]))


def tables(declared: Any) -> None:
    plan = planned({**QUICKSTART, "base": TIMED, "tables": declared})
    if plan is None:
        return
    results = with_planned((), plan)
    built = told(
        lambda: [build_table(table, results, lambda _: None, sweep=plan.name, commit=None) for table in plan.tables]
    )
    for name in RENDERERS.names() if built else ():
        told(lambda name=name: RENDERERS.load(name)(built))  # type: ignore[misc]


def recipe(content: str) -> None:
    through(content)


PATHS = [
    "name",
    "base.model",
    "base.train.learning_rate",
    "trials.3.stages.0.finetune.prune.sparsity",
    "trials.finetuned.stages",
    "trials.layer-{layers}.vary",
    "tables.0.columns",
    "base.data.block_size",
    "base.evaluate.protocol",
    "trials.9",
    ".",
    "",
    "base..x",
]
COMMANDS = [
    "sweep check",
    "sweep status",
    "sweep fields",
    "recipe fields",
    "table",
    "report",
    "figure",
    "compare",
    "recipe show",
    "recipe convert",
    "trial show",
    "trial run",
    "masks check",
    "eval",
    "doctor",
]
OPTIONS = [
    "--json",
    "--set",
    "--only",
    "--root",
    "--format",
    "--out",
    "--steps-per-epoch",
    "--model",
    "--vary",
    "--help",
    "--update",
    "-h",
    "--",
    "-",
    "name/x",
    "0",
    "-1",
    "1e999",
    "md",
    "latex",
    "nope",
    "sweeps/none.yaml",
    "spec.yaml",
    "recipe.yaml",
    "runs",
    "base.model=x",
    "name=",
    "=",
    "a=b=c",
    "*",
    "--slots",
]
WORDS = st.one_of(
    st.sampled_from(OPTIONS),
    ODD_TEXTS.filter(lambda word: "\0" not in word and not word.startswith(("s3:", "http"))),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6),
)


def command(given: tuple[str, list[str]]) -> None:
    name, words = given
    result = CliRunner().invoke(app, [*name.split(), *words])
    shown = shlex.join([*name.split(), *words])
    if isinstance(result.exception, PruneGPTError):
        assert len(str(result.exception)) > 12, shown
    elif isinstance(result.exception, OSError) and result.exception.errno in WAYS_OUT:
        pass  # told by `main`
    elif result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(shown) from result.exception
    else:
        assert result.exit_code in (0, 1, 2), shown
    assert "Traceback" not in result.output, shown
    assert "errors.pydantic.dev" not in f"{result.output}{result.exception}", shown


@dataclass(frozen=True)
class Target:
    """What is fed with what, and how often."""

    feed: Callable[[Any], None]
    cases: st.SearchStrategy[Any]
    few: int
    many: int


TARGETS = {
    "specs": Target(spec, changed(QUICKSTART, ODD), 40, 1500),
    "searches": Target(spec, changed(SEARCH, ODD, times=3), 40, 1200),
    "wandb": Target(spec, changed(WANDB, ODD, times=3), 60, 1800),
    "wandb-anything": Target(spec, st.fixed_dictionaries({"method": ODD_TEXTS}, optional={"parameters": ODD}), 20, 500),
    "texts": Target(text, damaged(TEXTS), 30, 1000),
    "bytes": Target(raw, st.binary(max_size=60) | damaged(TEXTS).map(lambda text: text.encode("utf-16")), 20, 500),
    "overrides": Target(
        override, st.tuples(st.sampled_from(PATHS) | st.text(max_size=9), ODD_TEXTS | ODD_NUMBERS), 30, 800
    ),
    "tables": Target(tables, changed(TABLES, ODD, times=3), 40, 1200),
    "recipes": Target(recipe, damaged(RECIPES), 20, 800),
    "commands": Target(command, st.tuples(st.sampled_from(COMMANDS), st.lists(WORDS, max_size=5)), 30, 700),
}


def run(name: str, count: int) -> None:
    target = TARGETS[name]
    chosen = settings(
        max_examples=count, deadline=None, print_blob=False, suppress_health_check=list(HealthCheck), database=None
    )
    given(target.cases)(chosen(lambda case: target.feed(case)))()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a command writes, or runs by mistake, is left in the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNEGPT_ROOT", str(tmp_path / "runs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(
        "prunegpt.spec.wandb.MAX_POINTS", 40
    )  # a sweep of thousands is legal, and takes seconds to plan
    (tmp_path / "spec.yaml").write_text(TEXTS[0], encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPES[0], encoding="utf-8")


def test_a_name_that_no_file_can_have_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a" * 300
    for words in (["table", name], ["masks", "check", name], ["trial", "run", name], ["sweep", "check", name]):
        monkeypatch.setattr("sys.argv", ["prunegpt", *words])
        with pytest.raises(SystemExit, match="1"):
            main()
        told = capsys.readouterr().err
        assert "error: " in told
        assert "File name too long" in told or "no such" in told.lower(), told


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_cases(name: str) -> None:
    run(name, TARGETS[name].few)
    assert not Path("it-ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_cases(name: str) -> None:
    run(name, TARGETS[name].many)
    assert not Path("it-ran").exists()


def test_there_are_ten_thousand_cases() -> None:
    assert sum(target.many for target in TARGETS.values()) >= 10_000


def test_what_is_changed_was_good() -> None:
    for data in (QUICKSTART, SEARCH, WANDB, {**QUICKSTART, "base": TIMED, "tables": TABLES}):
        assert plan_data(json.loads(json.dumps(data))).trials
    with pytest.raises(ZeroDivisionError):  # what is no error for people is not let go
        told(lambda: 1 / 0)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "after its aliases are expanded; it holds more"),
        ("a: &a [*a]\n", "nested 50 levels deep"),
        ("name: &a [*a]\n", "must be text|nested"),
        ("a: " + "[" * 10_000, "nested 50 levels deep|valid YAML"),
        ("a: " + "{a: " * 3_000, "nested 50 levels deep|valid YAML"),
        ("a: " + "9" * 10_000, "must be at most|valid YAML|larger"),
        ("a: 1" + "0" * 400 + ".5\n", "must be a mapping|unknown key|required"),
        ("a: " + "[" * 900_000, "nested 50 levels deep"),
        ("a: " + "[a, " * 200_000, "nested 50 levels deep"),
        ("a:\n  " + "- " * 400_000, "nested 50 levels deep"),
        ("? " * 400_000, "nested 50 levels deep"),
        ("x" * 1_100_000, "may have 1000000 bytes; it has 1100000"),
        ("a: !!python/object/apply:os.system ['touch it-ran']", "unknown key|valid YAML|required"),
        ("!!python/object/new:os.system ['touch it-ran']", "must be a mapping|valid YAML"),
    ],
)
def test_yaml_that_is_made_to_do_harm_is_refused_at_once(content: str, message: str) -> None:
    import time

    Path("bomb.yaml").write_text(content)
    begun = time.process_time()
    with pytest.raises(SpecError, match=message):
        plan_data(read_document(Path("bomb.yaml")).data)
    with pytest.raises(PruneGPTError):
        through_strictly(content)
    assert time.process_time() - begun < 10
    assert not Path("it-ran").exists()


def through_strictly(content: str) -> None:
    from prunegpt.recipes.load import meaning_of_text

    meaning_of_text(content, "bomb.yaml", None)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('touch it-ran')",
        "open('it-ran', 'w')",
        "().__class__.__bases__[0].__subclasses__()",
        "9**9**9**9",
        "'a' * 10**10",
        "[x for x in range(10**10)]",
        "lambda: 0",
        "n.__class__",
        "eval('1')",
        "exec('1')",
        "1 if open('it-ran', 'w') else 2",
    ],
)
def test_expressions_of_recipes_run_nothing(expression: str) -> None:
    content = (
        f"n: 3\nx: eval({expression})\nmodifiers:\n"
        f"  - !EpochRangeModifier\n    start_epoch: 0\n    end_epoch: eval({expression})\n"
    )
    with pytest.raises(PruneGPTError):
        through_strictly(content)
    assert not Path("it-ran").exists()


def test_yaml_safe_is_what_ruamel_gives_for_these_specs() -> None:
    for content in TEXTS:
        assert parse_document(content, "x").data == YAML(typ="safe", pure=True).load(content)
    assert os.environ["HF_HUB_OFFLINE"] == "1"

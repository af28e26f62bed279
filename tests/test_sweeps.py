"""Every spec in the repository is well formed, and the study's hold every row of its tables."""

from pathlib import Path

import pytest

from prunegpt.planning.resolve import plan_file
from prunegpt.spec.plan import SweepPlan
from prunegpt.spec.reference import reference
from prunegpt.spec.schema import Spec

SWEEPS = Path(__file__).resolve().parent.parent / "sweeps"
SPECS = sorted(SWEEPS.glob("*.yaml"))
STUDY = {"wikitext2": 10, "wikitext103": 10, "layer-sensitivity": 15}  # rows of the study's tables


def test_the_lists_are_whole() -> None:
    assert {"quickstart", "smollm2-smoke", *STUDY} <= {path.stem for path in SPECS}


def planned(name: str) -> SweepPlan:
    return plan_file(SWEEPS / f"{name}.yaml")


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_spec_is_well_formed(path: Path) -> None:
    plan = plan_file(path, curves=lambda _: {"0": ((0.8, 0.1),)})
    assert plan.name == path.stem
    assert plan.tables


@pytest.mark.parametrize("name", STUDY)
def test_every_row_of_the_study_is_a_trial_with_its_published_figure(name: str) -> None:
    plan = planned(name)
    trials = [trial.name for trial in plan.trials if trial.sweep == name and not trial.implicit]
    assert len(trials) == STUDY[name]
    (table,) = plan.tables
    assert set(table.reported) == set(trials)


def test_the_quickstart_needs_no_network() -> None:
    plan = planned("quickstart")
    assert not plan.unchecked
    assert len(plan.trials) == 11
    assert len({stage.key for trial in plan.trials for stage in trial.stages}) == 11


def test_the_reference_of_fields_is_what_the_schema_says() -> None:
    written = (SWEEPS / "README.md").read_text(encoding="utf-8")
    assert written == reference(), "write it again: prunegpt sweep fields --update sweeps/README.md"
    assert all(f"| `{name}` |" in written for name in Spec.model_fields)


def test_every_field_says_what_it_means() -> None:
    bare = [line for line in reference().splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert not bare

"""Who teaches whom: trials of this sweep, of sweeps beside it, and models."""

from pathlib import Path
from typing import Any

import pytest

from prunegpt.errors import SpecError
from prunegpt.planning.resolve import plan_data, plan_file
from prunegpt.spec.plan import SweepPlan, TrialPlan
from tests.support.specs import BASE, HEADER, model_folder, only, plan_of, problems_of


def distilled(name: str, teacher: Any, **fields: Any) -> dict[str, Any]:
    return {"name": name, "stages": [{"distill": {"teacher": teacher}}], **fields}


def named(plan: SweepPlan) -> dict[str, TrialPlan]:
    found = {f"{trial.sweep}/{trial.name}" if trial.sweep != plan.name else trial.name: trial for trial in plan.trials}
    assert len(found) == len(plan.trials)
    return found


FINETUNED = {"name": "finetuned", "stages": ["finetune"]}


# -- trials of this sweep --------------------------------------------------------------------------------------------


def test_a_student_needs_the_last_stage_of_its_teacher() -> None:
    trials = named(plan_of(distilled("student", "finetuned"), FINETUNED))
    student, teacher = trials["student"], trials["finetuned"]
    assert student.stages[1].teacher == teacher.key
    assert student.needs == (teacher.key,)
    assert student.teachers == {teacher.key: "tiny-gpt2(finetuned)"}
    assert teacher.needs == ()


def test_trials_stay_in_the_order_of_the_spec() -> None:
    plan = plan_of(
        distilled("c", "b"), distilled("b", "a"), {"name": "a"}, distilled("d", {"model": "builtin:tiny-gpt2"})
    )
    assert [(trial.name, trial.order) for trial in plan.trials] == [("c", 0), ("b", 1), ("a", 2), ("d", 3)]


def test_two_stages_may_have_two_teachers() -> None:
    stages = [{"distill": {"teacher": "a"}}, {"finetune": {}}, {"distill": {"teacher": "b"}}]
    trials = named(plan_of({"name": "s", "stages": stages}, {"name": "a"}, {"name": "b", "stages": ["finetune"]}))
    keys = (trials["a"].key, trials["b"].key)
    assert [stage.teacher for stage in trials["s"].stages] == [None, keys[0], None, keys[1]]
    assert trials["s"].needs == keys


def test_a_student_is_taught_by_the_teacher_of_its_own_seed() -> None:
    plan = plan_of({**FINETUNED, "seeds": [1, 2]}, distilled("student", "finetuned", seeds=[1, 2, 3]))
    trials = named(plan)
    taught = {f"student@{seed}": trials[f"finetuned@{teacher}"].key for seed, teacher in ((1, 1), (2, 2), (3, 1))}
    assert {name: trials[name].stages[1].teacher for name in taught} == taught
    assert trials["finetuned@1"].key != trials["finetuned@2"].key


def test_a_teacher_may_be_named_with_its_seed() -> None:
    trials = named(plan_of({**FINETUNED, "seeds": [1, 2]}, distilled("student", "finetuned@2", seeds=[1])))
    assert trials["student"].stages[1].teacher == trials["finetuned@2"].key


def test_a_teacher_may_be_one_that_varies() -> None:
    teacher = {
        "name": "t{max_steps}",
        "stages": [{"finetune": {}}],
        "vary": {"stages.0.finetune.train.max_steps": [1, 2]},
    }
    student = distilled("s-{teacher}", "t1", vary={"stages.0.distill.teacher": ["t1", "t2"]})
    trials = named(plan_of(teacher, student))
    assert [trials[f"s-t{n}"].stages[1].teacher for n in (1, 2)] == [trials[f"t{n}"].key for n in (1, 2)]


def test_a_teacher_of_this_sweep_may_be_named_with_it() -> None:
    trials = named(plan_of(FINETUNED, distilled("a", "words/finetuned")))
    assert trials["a"].stages[1].teacher == trials["finetuned"].key


# -- models ----------------------------------------------------------------------------------------------------------


def test_a_model_that_teaches_is_the_zero_shot_trial_where_there_is_one() -> None:
    plan = plan_of({"name": "zero-shot"}, distilled("student", {"model": "builtin:tiny-gpt2"}))
    assert [trial.name for trial in plan.trials] == ["zero-shot", "student"]
    assert plan.trials[1].stages[1].teacher == plan.trials[0].key
    assert plan.trials[1].teachers == {plan.trials[0].key: "tiny-gpt2(zero-shot)"}


def test_a_model_that_teaches_is_else_a_trial_that_tables_do_not_show(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "big model", positions=128)
    student = distilled("student", {"model": {"source": str(folder), "label": "Big"}}, seeds=[1, 2])
    plan = plan_of(student, distilled("other", {"model": str(folder)}))
    assert [(trial.name, trial.implicit) for trial in plan.trials] == [
        ("student@1", False),
        ("student@2", False),
        ("other", False),
        ("teacher-big_model", True),
    ]
    teacher = plan.trials[3]
    assert {trial.stages[1].teacher for trial in plan.trials[:3]} == {teacher.key}
    assert (teacher.label, teacher.order, len(teacher.stages)) == ("Big", 3, 1)
    assert plan.trials[0].teachers == {teacher.key: "Big"}
    assert teacher.evaluation_key == plan.trials[0].evaluation_key


def test_two_models_of_one_name_are_two_trials_and_take_no_name_of_ours(tmp_path: Path) -> None:
    models = [
        model_folder(tmp_path / place / "model", fill=fill, positions=128) for place, fill in (("a", 0), ("b", 1))
    ]
    students = [distilled(f"s{index}", {"model": str(model)}) for index, model in enumerate(models)]
    plan = plan_of(*students, {"name": "teacher-model", "stages": ["finetune"]})
    assert [trial.name for trial in plan.trials if trial.implicit] == ["teacher-model-2", "teacher-model-3"]


# -- sweeps beside this one ------------------------------------------------------------------------------------------


class Beside:
    """Spec files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, trials: str, header: str = HEADER) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(header.replace("name: words", f"name: {name}") + trials)
        return path

    def problems(self, name: str, *overrides: str) -> list[str]:
        with pytest.raises(SpecError) as caught:
            plan_file(self.folder / f"{name}.yaml", overrides)
        return [f"{problem.where}: {problem.message}" for problem in caught.value.problems]


@pytest.fixture
def beside(tmp_path: Path) -> Beside:
    return Beside(tmp_path)


STUDENT = "  - {name: student, stages: [{distill: {teacher: big/finetuned}}]}\n"
TEACHER = "  - {name: finetuned, stages: [finetune]}\n"


def test_a_teacher_of_another_sweep_comes_into_the_plan(beside: Beside) -> None:
    path = beside.write("small", STUDENT)
    beside.write("big", "  - {name: unused}\n" + TEACHER + "  - {name: broken, stages: [{prune: {}}]}\n")
    plan = plan_file(path)
    trials = named(plan)
    assert list(trials) == ["student", "big/finetuned"]
    assert trials["student"].needs == (trials["big/finetuned"].key,)
    assert trials["student"].teachers == {trials["big/finetuned"].key: "tiny-gpt2(finetuned)"}


def test_it_brings_its_own_teachers(beside: Beside, tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model", positions=128)
    path = beside.write("small", STUDENT)
    beside.write(
        "big",
        "  - {name: first, stages: [finetune]}\n"
        "  - {name: finetuned, stages: [{distill: {teacher: first}}, {distill: {teacher: huge/best}}]}\n",
    )
    beside.write("huge", f"  - {{name: best, stages: [{{distill: {{teacher: {{model: {model}}}}}}}]}}\n")
    trials = named(plan_file(path))
    assert set(trials) == {"student", "big/finetuned", "big/first", "huge/best", "huge/teacher-model"}
    everything = {trial.key for trial in trials.values()}
    assert all(set(trial.needs) <= everything for trial in trials.values())


def test_two_sweeps_may_teach_each_others_trials_without_a_circle(beside: Beside) -> None:
    path = beside.write("small", STUDENT + "  - {name: start, stages: [finetune]}\n")
    beside.write("big", "  - {name: finetuned, stages: [{distill: {teacher: small/start}}]}\n")
    trials = named(plan_file(path))
    assert set(trials) == {"student", "start", "big/finetuned"}
    assert trials["big/finetuned"].needs == (trials["start"].key,)


def test_a_circle_over_two_sweeps_is_told(beside: Beside) -> None:
    beside.write("small", STUDENT)
    beside.write("big", "  - {name: finetuned, stages: [{distill: {teacher: small/student}}]}\n")
    (found,) = beside.problems("small")
    assert "trials.0.stages.0.distill.teacher: the teacher big/finetuned cannot run, " in found
    assert "a circle: small/student → big/finetuned → small/student." in found


def test_an_override_with_a_name_reaches_the_other_sweep(beside: Beside) -> None:
    path = beside.write("small", STUDENT)
    beside.write("big", TEACHER)
    before = named(plan_file(path))
    after = named(plan_file(path, ["big:trials.finetuned.stages.0.finetune.train.max_steps=3"]))
    assert after["big/finetuned"].stages[1].training.train == {"max_steps": 3}  # type: ignore[union-attr]
    assert after["big/finetuned"].key != before["big/finetuned"].key
    assert after["student"].stages[1].training.train == {}  # type: ignore[union-attr]
    other = named(plan_file(path, ["base.train.max_steps=3"]))
    assert other["big/finetuned"].key == before["big/finetuned"].key
    assert other["student"].stages[1].training.train == {"max_steps": 3}  # type: ignore[union-attr]


def test_an_override_for_a_sweep_that_nobody_asks_is_a_problem(beside: Beside) -> None:
    beside.write("small", STUDENT)
    beside.write("big", TEACHER)
    assert beside.problems("small", "bgi:base.train.max_steps=3") == [
        ": --set bgi:base.train.max_steps=3: no teacher comes from a sweep 'bgi'. Give its path without that name."
    ]


FOREIGN = {
    "no file": (None, "needs the spec of that sweep beside this one; there is no big.yaml"),
    "no such trial": ("  - {name: finetund}\n", "sweep big has no trial 'finetuned'. Trials: finetund."),
    "a broken trial": (
        "  - {name: finetuned, stages: [{prune: {}}]}\n",
        "line 6: trials.0.stages.0.prune: pruning needs a sparsity",
    ),
    "a trial that does not fit": (
        "  - {name: finetuned, stages: [{prune: {sparsity: 0.5, layers: 9}}]}\n",
        "line 6: trials.0.stages.0.prune: layers must be indices",
    ),
    "a broken base": ("  - {name: finetuned}\nbase: {}\n", "keys must differ; 'base' is there twice"),
    "no YAML": ("  - {name: finetuned", "a spec must be valid YAML"),
}
assert FOREIGN


@pytest.mark.parametrize(("trials", "message"), FOREIGN.values(), ids=FOREIGN.keys())
def test_what_is_wrong_with_another_sweep_is_told_at_the_student(
    trials: str | None, message: str, beside: Beside
) -> None:
    beside.write("small", STUDENT)
    if trials is not None:
        beside.write("big", trials)
    (found,) = beside.problems("small")
    assert found.startswith("trials.0.stages.0.distill.teacher: ")
    assert message in found


def test_a_second_student_of_a_broken_teacher_is_told_as_well(beside: Beside) -> None:
    beside.write("small", STUDENT + STUDENT.replace("student", "second"))
    beside.write("big", "  - {name: finetuned, stages: [{prune: {sparsity: 0.5, layers: 9}}]}\n")
    found = beside.problems("small")
    assert [item.partition(":")[0] for item in found] == [f"trials.{n}.stages.0.distill.teacher" for n in (0, 1)]
    assert all("layers must be indices" in item for item in found)


def test_paths_of_another_sweep_count_from_its_own_folder_and_teachers_need_a_file() -> None:
    found = only(problems_of(distilled("a", "big/b")))
    assert "there is no big.yaml. For a model on the hub write {model: big/b}" in found.message


def test_a_plan_survives_its_own_json() -> None:
    plan = plan_of(
        FINETUNED,
        distilled("a", "finetuned", seeds=[1, 2]),
        {
            "name": "p",
            "stages": [
                {
                    "prune": {
                        "sparsity": 0.5,
                        "allocation": {"*mlp*": 0.1, "*": 0.5},
                        "method": "sparsegpt",
                        "options": {"damping": 1},
                    }
                }
            ],
        },
        tables=[{"title": "t", "rows": ["a"], "columns": ["model"], "reported": {"a": float("inf")}}],
    )
    assert SweepPlan.model_validate_json(plan.model_dump_json()) == plan
    assert plan.spec["tables"][0]["reported"] == {"a": "inf"}
    for trial in plan.trials:
        again = TrialPlan.model_validate_json(trial.model_dump_json())
        assert again == trial
        assert again.model_dump_json() == trial.model_dump_json()


def test_the_quickstart_has_no_problem() -> None:
    checkout = Path(__file__).resolve().parents[2]
    plan = plan_file(checkout / "sweeps" / "quickstart.yaml", strict=True)
    assert plan.trials
    assert plan.tables


def test_base_is_not_changed_by_planning() -> None:
    before = repr(BASE)
    plan_of(FINETUNED, distilled("a", "finetuned"))
    assert repr(BASE) == before


def test_a_teacher_may_be_given_by_vary_alone() -> None:
    plan = plan_data(
        {
            "name": "small",
            "base": {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text", "block_size": 128}},
            "trials": [
                {"name": "zero-shot"},
                {"name": "finetuned", "stages": [{"finetune": {}}]},
                {
                    "name": "distilled",
                    "stages": [{"distill": {"hardness": 0.5}}],
                    "vary": {"stages.0.distill.teacher": ["zero-shot", "finetuned"]},
                },
            ],
        }
    )
    names = [trial.name for trial in plan.trials]
    assert names[2:] == ["distilled-teacher=zero-shot", "distilled-teacher=finetuned"]

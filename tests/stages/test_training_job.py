"""A training stage does what its job says, whatever is logged, stopped, resumed, or pruned before it."""

import errno
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from prunegpt.errors import MaskDriftError, PruneGPTError, PruningError
from prunegpt.planning.budget import models_on_disk
from prunegpt.pruning.gradients import GatheredGradients
from prunegpt.pruning.job import GradualJob, resolve_gradual
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.patterns import Unstructured, parse_pattern
from prunegpt.records import AttemptRecord
from prunegpt.spec.plan import StagePlan
from prunegpt.spec.schedules import Clock
from prunegpt.spec.schema import FinetuneSpec, ModelSpec
from prunegpt.training import TrainingJob, trainer
from tests.support.running import RunTrials
from tests.support.toys import Toy

GRADUAL = {"sparsity": 0.5, "unit": "steps", "start": 1, "end": 4, "every": 1}
CALIBRATION = {"windows": 4, "length": 16}


def gradual(**fields: Any) -> dict[str, Any]:
    return {"name": "t", "stages": [{"finetune": {"prune": {**GRADUAL, **fields}}}]}


def evaluations(record: AttemptRecord) -> Iterator[Any]:
    for stage in record.stages:
        assert stage.evaluation is not None
        yield stage.evaluation.model_copy(update={"seconds": 0.0})


# -- nothing that diverged is finished ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "logging", [{"logging_strategy": "no"}, {"logging_steps": 1000}, {"logging_strategy": "epoch"}]
)
@pytest.mark.parametrize("steps", [3, 24])
def test_a_loss_that_is_not_finite_is_seen_whatever_is_logged(
    run_trials: RunTrials, logging: dict[str, Any], steps: int
) -> None:
    train = {"learning_rate": 1e30, "max_grad_norm": 0.0, "max_steps": steps, **logging}
    record = run_trials({"name": "t", "stages": [{"finetune": {"train": train}}]})["t"]
    assert (record.state, record.reason) == ("diverged", "diverged"), record.error
    assert len(record.stages) == 1  # nothing but the model as it was


# -- what earlier stages pruned stays pruned ------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"regrow": True}, {"schedule": "acdc"}, {"schedule": "acdc", "regrow": True}])
def test_masks_of_earlier_stages_do_not_reopen(run_trials: RunTrials, fields: dict[str, Any]) -> None:
    prune = {"prune": {"sparsity": 0.8}}
    trial = gradual(sparsity=0.3, **fields)
    record = run_trials({**trial, "stages": [prune, *trial["stages"]]})["t"]
    assert record.state == "finished", record.trace
    before, after = record.stages[-2].sparsity, record.stages[-1].sparsity
    assert before is not None
    assert after is not None
    assert all(after.by_tensor[name] >= share for name, share in before.by_tensor.items())


# -- a training that comes to something else than was asked for fails -----------------------------------------------


def test_a_pruning_that_never_happens_is_no_finished_stage(
    run_trials: RunTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunegpt.pruning.gradual import GradualPruner

    monkeypatch.setattr(GradualPruner, "before_step", lambda *_: None)
    record = run_trials(gradual())["t"]
    assert record.state == "failed"
    assert "must end with the sparsity that it was asked for" in record.error
    assert "should be 50.0000% sparse and is 0.0000%" in record.error


def test_a_training_that_ends_early_is_no_finished_stage(
    run_trials: RunTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunegpt.training.trainer import JobTrainer

    end = JobTrainer.on_step_end

    def early(self: JobTrainer, args: Any, state: Any, control: Any, **more: Any) -> None:
        end(self, args, state, control, **more)
        control.should_training_stop = state.global_step >= 3

    monkeypatch.setattr(JobTrainer, "on_step_end", early)
    record = run_trials({"name": "t", "stages": ["finetune"]})["t"]
    assert record.state == "failed"
    assert "the optimizer steps that it was planned with, 6; it took 3" in record.error


@st.composite
def jobs(draw: st.DrawFn) -> tuple[GradualJob, dict[str, Mask]]:
    """A job over two matrices, and masks that its pattern chooses for it."""
    pattern = draw(st.sampled_from(["unstructured", "[2, 4]", "[3, 2]"]))
    by_row = draw(st.booleans())
    finals = {name: draw(st.floats(0, 0.99)) for name in ("first.weight", "second.weight")}
    job = GradualJob(
        method="magnitude", pattern=pattern, scope="row" if by_row else "tensor", updates=(0, 4), sparsities=finals
    )
    shapes = {"first.weight": (8, 6), "second.weight": (4, 8)}
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    masks = {
        name: Mask(parse_pattern(pattern).select(torch.rand(shape, generator=generator), finals[name], rowwise=by_row))
        for name, shape in shapes.items()
    }
    return job, masks


@given(jobs())
@settings(deadline=None)
def test_what_a_pattern_chooses_is_what_the_job_asked_for(drawn: tuple[GradualJob, dict[str, Mask]]) -> None:
    job, masks = drawn
    job.verify(masks, {})


@given(drawn=jobs(), name=st.sampled_from(["first.weight", "second.weight"]), opened=st.booleans())
@settings(deadline=None)
def test_another_sparsity_is_found(drawn: tuple[GradualJob, dict[str, Mask]], name: str, opened: bool) -> None:
    """One unit more, or one less, than the job says."""
    job, masks = drawn
    pattern = parse_pattern(job.pattern)
    units = pattern.pool_mask(masks[name].kept)  # [unit rows, unit columns]
    others = (~units if opened else units).nonzero()
    whole = isinstance(pattern, Unstructured) or not any(
        side % unit for side, unit in zip(masks[name].shape, (pattern.rows, pattern.columns), strict=True)
    )
    if not len(others) or not whole:
        return
    units[tuple(others[0])] = opened
    masks[name] = Mask(pattern.spread(units, masks[name].shape))
    with pytest.raises(MaskDriftError, match=rf"{name} should be .* sparse and is"):
        job.verify(masks, {})


def test_a_global_budget_is_compared_as_a_whole() -> None:
    job = GradualJob(method="magnitude", scope="global", updates=(0,), sparsities={"a": 0.5, "b": 0.5})
    masks = {"a": Mask(torch.zeros(4, 4, dtype=torch.bool)), "b": Mask(torch.ones(4, 4, dtype=torch.bool))}
    job.verify(masks, {})
    masks["b"] = Mask(torch.zeros(4, 4, dtype=torch.bool))
    with pytest.raises(MaskDriftError, match=r"all pruned tensors together should be 50.0000% sparse and is 100.0000%"):
        job.verify(masks, {})


def test_a_schedule_that_does_not_end_where_it_should_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule from elsewhere may be any function."""
    from prunegpt.registry import SCHEDULES

    for curve, regrow, message in (
        (lambda x: 0.9 * x, False, "cubic goes from 0 to 0.9"),
        (lambda x: 1.0 if x in (0.25, 1.0) else 0.5, False, "never fall where weights may not come back"),
        (lambda x: 2 * x, True, "between 0 and 2"),
    ):
        monkeypatch.setattr(SCHEDULES, "load", lambda _, curve=curve: curve)
        with pytest.raises(PruningError, match=message):
            resolve_gradual(Toy().views(), method="magnitude", clock=Clock.regular(0, 4), final=0.5, regrow=regrow)


def test_sparsity_grows_from_the_initial_one() -> None:
    views, clock = Toy().views(), Clock.regular(0, 4)
    with pytest.raises(PruningError, match=r"initial is 0.6 and the final sparsity at most 0.5"):
        resolve_gradual(views, method="magnitude", clock=clock, final=0.5, initial=0.6)
    job = resolve_gradual(
        views, method="magnitude", clock=clock, sparsities={"first.weight": 0.2, "second.weight": 0.8}, initial=0.4
    )
    assert job.targets(0) == {"first.weight": 0.2, "second.weight": 0.4}
    assert job.targets(4) == {"first.weight": 0.2, "second.weight": 0.8}


def test_an_initial_sparsity_above_the_final_one_is_followed_where_weights_may_come_back() -> None:
    views = Toy().views()
    job = resolve_gradual(
        views, method="magnitude", clock=Clock.regular(0, 4, 2), final=0.5, initial=0.8, schedule="linear", regrow=True
    )
    assert [job.targets(update)["first.weight"] for update in job.updates] == pytest.approx([0.8, 0.65, 0.5])
    alternating = resolve_gradual(
        views, method="magnitude", clock=Clock.regular(0, 4, 1), final=0.7, initial=0.9, schedule="acdc"
    )
    assert [alternating.targets(update)["first.weight"] for update in alternating.updates] == [0.9, 0.7, 0.9, 0.7, 0.7]


@given(st.integers(0, 999), st.sampled_from(["row", "2:4", "tensor"]), st.floats(0, 0.9))
@settings(deadline=None)
def test_what_earlier_stages_pruned_excuses_no_more_than_itself(seed: int, how: str, share: float) -> None:
    """Of rows, groups or tensors that had less than their share, just the share is pruned; of others, what they had."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.rand(8, 12, generator=generator) > share
    pattern = "2:4" if how == "2:4" else "unstructured"
    by_row = how == "row"
    job = GradualJob(
        method="magnitude", pattern=pattern, scope="row" if by_row else "tensor", updates=(0,), sparsities={"w": 0.5}
    )
    scores = torch.rand(8, 12, generator=generator)
    chosen = parse_pattern(pattern).select(scores, 0.5, rowwise=by_row, mask=held)
    job.verify({"w": Mask(chosen)}, {"w": Mask(held)})
    kept = chosen.nonzero()
    if len(kept):
        chosen[tuple(kept[0])] = False  # one weight more
        with pytest.raises(MaskDriftError, match=r"w should be 50\.0000% sparse"):
            job.verify({"w": Mask(chosen)}, {"w": Mask(held)})


# -- a job is computed once -----------------------------------------------------------------------------------------


def interrupted(
    run_trials: RunTrials, monkeypatch: pytest.MonkeyPatch, trial: dict[str, Any], step: int, **more: Any
) -> None:
    """Runs a trial that is asked to stop after an optimizer step."""
    from prunegpt.training.trainer import JobTrainer

    end = JobTrainer.on_step_end

    def on_step_end(self: JobTrainer, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == step:
            self.stop = lambda: True
        end(self, args, state, control, **more)

    with monkeypatch.context() as patched:
        patched.setattr(JobTrainer, "on_step_end", on_step_end)
        assert run_trials(trial, **more)["t"].state == "stopped"


def the_work_folder(root: Path) -> Path:
    (folder,) = (folder for folder in (root / "work").iterdir() if (folder / "job.json").exists())
    return folder


def test_an_attempt_that_goes_on_reads_its_job(
    run_trials: RunTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = gradual(allocation="owl", calibration=CALIBRATION)
    interrupted(run_trials, monkeypatch, trial, 3)
    work = the_work_folder(tmp_path / "runs")
    job = json.loads((work / "job.json").read_text())
    assert len(set(job["prune"]["sparsities"].values())) == 2  # each layer its own

    def computed(*_: Any) -> None:
        raise AssertionError("the allocation was computed again")

    monkeypatch.setattr("prunegpt.stages.train.sparsities_of", computed)
    record = run_trials(trial, attempt=2)["t"]
    assert record.state == "finished", record.trace
    published = tmp_path / "runs" / "stages" / record.stages[-1].key / "job.json"
    assert json.loads(published.read_text()) == job  # and stays to be looked at


def test_arguments_that_do_not_decide_the_result_are_those_of_the_attempt_that_runs(
    run_trials: RunTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(run_trials, monkeypatch, gradual(), 3, attempt=2, train={"logging_steps": 100, "project": "one"})
    job = json.loads((the_work_folder(tmp_path / "runs") / "job.json").read_text())
    assert not {"logging_steps", "project"} & set(job["arguments"])
    assert job["arguments"]["learning_rate"] == 0.003
    record = run_trials(gradual(), attempt=3, train={"logging_steps": 1, "project": "other"})["t"]
    assert record.state == "finished", record.trace
    assert record.stages[-1].key == job["key"]
    lines = (tmp_path / "runs" / "trials" / "small" / "t" / "attempt-3" / "points.jsonl").read_text().splitlines()
    assert [point["step"] for point in map(json.loads, lines) if point["name"] == "loss"] == [4, 5, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: {**job, "key": "another"}, "a stage must resume the job that it began"),
        (lambda job: {**job, "held": "0" * 64}, "or of a model with other masks"),
        (lambda job: {**job, "stepz": 3}, "must say what a stage is training; .* cannot be read"),
    ],
)
def test_a_job_of_something_else_is_refused(
    run_trials: RunTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    interrupted(run_trials, monkeypatch, gradual(), 3)
    path = the_work_folder(tmp_path / "runs") / "job.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    record = run_trials(gradual(), attempt=2)["t"]
    assert record.state == "failed"
    with pytest.raises(PruneGPTError, match=message):
        raise PruneGPTError(record.error)


def test_a_training_on_nothing_is_refused_before_it_starts(run_trials: RunTrials) -> None:
    train = {"per_device_train_batch_size": 10_000, "dataloader_drop_last": True}
    record = run_trials({"name": "t", "stages": [{"finetune": {"train": train}}]})["t"]
    assert record.state == "failed"
    assert "a training needs at least one batch" in record.error


# -- checkpoints ----------------------------------------------------------------------------------------------------


def test_masks_are_written_once_into_a_checkpoint(run_trials: RunTrials, tmp_path: Path) -> None:
    train = {"save_strategy": "steps", "save_steps": 3}
    trial = gradual(method="movement")
    trial["stages"][0]["finetune"] |= {"keep_checkpoints": True, "train": train}
    record = run_trials(trial)["t"]
    folder = tmp_path / "runs" / "stages" / record.stages[-1].key / "checkpoints" / "checkpoint-3"
    with safe_open(folder / "pruner.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert not [name for name in names if "mask" in name]
    assert [name for name in names if name.startswith("gradients/movement/")]
    assert (folder / "masks.safetensors").exists()


CHOSEN = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 1}


@pytest.mark.parametrize("further", [{}, CHOSEN], ids=["last", "best"])
def test_a_training_has_at_most_as_many_models_on_the_disk_as_the_check_counts(
    run_trials: RunTrials, monkeypatch: pytest.MonkeyPatch, further: dict[str, Any]
) -> None:
    train = {"save_strategy": "steps", "save_steps": 1, **further}
    write, most = trainer.write_json, [0]

    def written(path: Path, value: Any) -> None:
        """The last file of a checkpoint."""
        models = [*path.parent.parent.glob("checkpoint-*/model.safetensors")]
        moments = [*path.parent.parent.glob("checkpoint-*/optimizer.pt")]
        most.append(len(models) + 2 * len(moments))
        write(path, value)

    monkeypatch.setattr(trainer, "write_json", written)
    record = run_trials({"name": "t", "stages": [{"finetune": {"train": train}}]})["t"]
    assert record.state == "finished", record.error
    assert len(most) == 7
    model = ModelSpec(source="builtin:tiny-gpt2")
    stage = StagePlan(key="k", kind="finetune", model=model, finetune=FinetuneSpec(train=train))
    assert max(most) <= models_on_disk(stage) == (9 if further else 6)
    assert max(most) >= 6


def test_a_disk_that_is_full_while_publishing_loses_no_checkpoint(
    run_trials: RunTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = gradual()
    trial["stages"][0]["finetune"] |= {"keep_checkpoints": True, "train": {"save_strategy": "steps", "save_steps": 2}}
    seal, sealed = __import__("prunegpt.stages.cache", fromlist=["seal"]).seal, []

    def full(folder: Path) -> None:
        sealed.append(folder)
        if (folder / "checkpoints").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        seal(folder)

    with monkeypatch.context() as patched:
        patched.setattr("prunegpt.stages.cache.seal", full)
        record = run_trials(trial)["t"]
    assert (record.state, record.reason) == ("failed", "disk-full")
    work = the_work_folder(tmp_path / "runs")
    assert {folder.name for folder in work.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    record = run_trials(trial, attempt=2)["t"]
    assert record.state == "finished", record.trace
    kept = tmp_path / "runs" / "stages" / record.stages[-1].key / "checkpoints"
    assert {folder.name for folder in kept.iterdir()} == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}


# -- what a method says, and what it is shown -----------------------------------------------------------------------


def test_notes_of_a_solver_are_kept_and_outlast_a_stop(run_trials: RunTrials, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens leave the Gram matrices singular, so that damping is raised at every update."""
    few = {"method": "sparsegpt", "calibration": {"windows": 1, "length": 4}, "options": {"damping": 1e-12}}
    whole = run_trials(gradual(**few))["t"]
    assert whole.state == "finished", whole.trace
    notes = whole.stages[-1].notes
    assert [note for note in notes if "damping" in note and note.startswith("transformer.h.")]
    assert len(set(notes)) == len(notes)


def test_a_scaled_loss_is_unscaled_and_an_overflow_left_out() -> None:
    toy = Toy()
    views = {"first.weight": toy.views()["first.weight"]}
    plain, scaled = (GatheredGradients(views, frozenset({"movement", "squared_gradient"})) for _ in range(2))
    steps = [torch.full((8, 6), float(value)) for value in (1, 2, 3)]
    for gradient in steps:
        plain.accumulate({"first.weight": gradient})
    for number, gradient in enumerate(steps):
        scaled.accumulate({"first.weight": gradient * 1024}, scale=1024.0)
        if number == 1:
            scaled.accumulate({"first.weight": torch.full((8, 6), float("inf"))}, scale=1024.0)
    for need, expected in plain.of("first.weight").items():
        assert torch.equal(scaled.of("first.weight")[need], expected)
    scaled.close_window()
    scaled.accumulate({"first.weight": torch.full((8, 6), float("nan"))}, scale=1024.0)
    assert torch.equal(scaled.of("first.weight")["squared_gradient"], plain.of("first.weight")["squared_gradient"])


def test_a_gradient_scaler_is_asked_for_its_scale(
    run_trials: RunTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As float16 on a GPU has one: gradients come scaled, the criterion sees those of the loss."""
    from prunegpt.pruning.gradual import GradualPruner
    from prunegpt.training.trainer import JobTrainer

    plain = run_trials(gradual(method="movement"))["t"]
    (tmp_path / "runs").rename(tmp_path / "plain")
    step, accumulate, scales = JobTrainer.training_step, GradualPruner.accumulate, []

    class Scaler:
        def get_scale(self) -> float:
            return 2.0

        def scale(self, loss: torch.Tensor) -> torch.Tensor:
            return loss  # gradients are doubled below

    def training_step(self: JobTrainer, *arguments: Any) -> torch.Tensor:
        self.accelerator.scaler = Scaler()
        try:
            return step(self, *arguments)
        finally:
            self.accelerator.scaler = None

    def doubled(self: GradualPruner, gradients: Any = None, *, scale: float = 1.0) -> None:
        scales.append(scale)
        given = {name: view.gradient * 2.0 for name, view in self.enforcer.views.items() if view.gradient is not None}
        accumulate(self, given, scale=scale)

    monkeypatch.setattr(JobTrainer, "training_step", training_step)
    monkeypatch.setattr(GradualPruner, "accumulate", doubled)
    scaled = run_trials(gradual(method="movement"))["t"]
    assert set(scales) == {2.0}
    assert list(evaluations(scaled)) == list(evaluations(plain))


# -- the cache of teacher logits ------------------------------------------------------------------------------------


def test_cached_teacher_logits_are_those_of_the_trial_that_asks(
    run_trials: RunTrials, tmp_path: Path, model_folder: Path, text_files: dict[str, str]
) -> None:
    """Everything that decides what a teacher says is in the key: the order of trials changes no result."""

    def trial(**fields: Any) -> dict[str, Any]:
        stage = {"teacher": {"model": str(model_folder)}, "cache": {"k": 8}, "hardness": 1.0}
        precision = fields.pop("precision", "float32")
        return {"name": "t", "precision": precision, "stages": [{"distill": {**stage, **fields}}]}

    variants: list[Mapping[str, Any]] = [
        {},
        {"precision": "bfloat16"},
        {"cache": {"k": 9}},
        {"temperature": 2.0000001},
        {"temperature": 2.0000002},
    ]
    data = {"files": text_files, "block_size": 32, "max_train_blocks": 16}
    for number, fields in enumerate(variants):
        assert run_trials(trial(**fields), attempt=number + 1, data=data)["t"].state == "finished"
        folders = list((tmp_path / "runs" / "teachers").iterdir())
        assert len(folders) == number + 1, fields
    contents = {folder.joinpath("log_rest.npy").read_bytes() for folder in folders}
    assert len(contents) >= 4  # a last digit of the temperature may be lost to float32
    assert all(np.load(folder / "indices.npy").ndim == 3 for folder in folders)


# -- a stage leaves nothing in the process --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        {"distill": {"attention_gain": 1.0}},
        {"distill": {"hidden_gain": 1.0}},
        {"finetune": {"train": {"gradient_checkpointing": True}}},
        {"finetune": {"train": {"neftune_noise_alpha": 5.0}}},
        {"prune": {"method": "sparsegpt", "sparsity": 0.5, "calibration": CALIBRATION}},
    ],
    ids=lambda stage: json.dumps(stage),
)
def test_a_chain_run_in_pieces_gives_the_same_bits(
    run_trials: RunTrials, tmp_path: Path, model_folder: Path, first: dict[str, Any]
) -> None:
    ((kind, fields),) = first.items()
    if kind == "distill":
        fields = {**fields, "teacher": {"model": str(model_folder)}}
    stages: list[Any] = [{kind: fields}, {"finetune": {"train": {"max_steps": 3}}}]
    whole = run_trials({"name": "t", "stages": stages})["t"]
    assert whole.state == "finished", whole.trace
    (tmp_path / "runs").rename(tmp_path / "whole")
    pieces = run_trials({"name": "t", "stages": stages[:1]})["t"]
    assert pieces.state == "finished", pieces.trace
    rest = run_trials({"name": "t", "stages": stages}, attempt=2)["t"]
    assert list(evaluations(rest)) == list(evaluations(whole))
    for name in ("whole", "runs"):
        assert (tmp_path / name / "stages" / rest.stages[-1].key / "model" / "model.safetensors").exists()
    first_bits, second_bits = (
        (tmp_path / name / "stages" / rest.stages[-1].key / "model" / "model.safetensors").read_bytes()
        for name in ("whole", "runs")
    )
    assert first_bits == second_bits


def test_a_job_survives_its_file(tmp_path: Path) -> None:
    prune = resolve_gradual(Toy().views(), method="magnitude", clock=Clock.regular(0, 4), final=1 / 3)
    job = TrainingJob(key="k", steps=5, per_epoch=2, arguments={"learning_rate": 0.1}, prune=prune, held="0" * 64)
    job.write(tmp_path)
    with pytest.raises(PruneGPTError, match="a stage must resume the job that it began"):
        TrainingJob.read(tmp_path, key="k", held={})
    assert TrainingJob.model_validate_json((tmp_path / "job.json").read_text()) == job
    assert TrainingJob.read(tmp_path / "nowhere", key="k", held={}) is None

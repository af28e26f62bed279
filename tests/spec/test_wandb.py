"""W&B sweep configs as specs, and specs as W&B sweep configs."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.errors import SpecError
from prunegpt.planning.resolve import plan_data, plan_file
from prunegpt.spec.expand import expand
from prunegpt.spec.plan import SweepPlan
from prunegpt.spec.read import Document, parse_document, plain_document
from prunegpt.spec.wandb_config import config_of

BODY: dict[str, Any] = {
    "base": {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text", "block_size": 128}},
    "trials": [{"name": "pruned", "stages": ["finetune", {"prune": {"sparsity": 0.5}}]}],
}
SPARSITIES = {"stages.1.prune": {"parameters": {"sparsity": {"values": [0.5, 0.8]}}}}


def sweep(method: str = "grid", **more: Any) -> dict[str, Any]:
    return {"method": method, "parameters": SPARSITIES, "prunegpt": BODY, **more}


def read(config: dict[str, Any]) -> Document:
    return plain_document(config, "words.yaml")


def test_a_grid_becomes_vary_with_the_paths_its_names_make() -> None:
    train = {"parameters": {"learning_rate": {"values": [1e-3, 1e-4]}, "warmup_steps": {"value": 5}}}
    document = read(sweep(parameters={"train": train, **SPARSITIES}))
    assert document.data["name"] == "words"
    (trial,) = document.data["trials"]
    assert trial["vary"] == {"stages.1.prune.sparsity": [0.5, 0.8], "train.learning_rate": [1e-3, 1e-4]}
    assert trial["train"] == {"warmup_steps": 5}
    names = [one.name for one in expand(document).configurations]
    assert names[0] == "pruned-sparsity=0.5-learning_rate=0.001"
    assert len(names) == 4


def test_a_plan_is_the_same_as_that_of_the_spec_it_means() -> None:
    ours = plan_data(
        {"name": "words", **BODY, "trials": [{**BODY["trials"][0], "vary": {"stages.1.prune.sparsity": [0.5, 0.8]}}]}
    )
    theirs = plan_data(sweep(name="words"))
    assert [trial.key for trial in theirs.trials] == [trial.key for trial in ours.trials]
    assert [trial.name for trial in theirs.trials] == [trial.name for trial in ours.trials]


def test_run_cap_cuts_a_grid_in_its_order() -> None:
    document = read(sweep(run_cap=3, parameters={"train.warmup_steps": {"min": 1, "max": 3}, **SPARSITIES}))
    swept = [one.swept for one in expand(document).configurations]
    assert [tuple(point.values()) for point in swept] == [(0.5, 1), (0.5, 2), (0.5, 3)]


@pytest.mark.parametrize(("method", "sampler"), [("random", "random"), ("bayes", "tpe")])
def test_random_and_bayes_become_a_search(method: str, sampler: str) -> None:
    parameters = {
        "train.learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
        "train.warmup_steps": {"min": 0, "max": 20},
        "train.weight_decay": {"min": 0.0, "max": 0.5},
        "train.lr_scheduler_type": {"values": ["linear", "cosine"]},
    }
    metric = {"name": "perplexity", "goal": "minimize"}
    (trial,) = read(sweep(method, parameters=parameters, metric=metric, run_cap=7)).data["trials"]
    assert trial["search"] == {
        "space": {
            "train.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
            "train.lr_scheduler_type": {"values": ["linear", "cosine"]},
            "train.warmup_steps": {"low": 0, "high": 20},
            "train.weight_decay": {"low": 0.0, "high": 0.5},
        },
        "sampler": sampler,
        "seed": 0,
        "objectives": [{"metric": "perplexity", "direction": "minimize"}],
        "n_trials": 7,
    }
    (search,) = plan_data(sweep(method, parameters=parameters, metric=metric, run_cap=7)).searches
    assert search.spec.n_trials == 7


def test_what_no_range_can_say_is_drawn_at_random() -> None:
    parameters = {"train.weight_decay": {"distribution": "beta", "a": 2, "b": 5}}
    document = read(sweep("random", parameters=parameters, run_cap=5))
    drawn = [trial["vary"]["train.weight_decay"][0] for trial in document.data["trials"]]
    assert len(set(drawn)) == 5
    assert all(0 < value < 1 for value in drawn)
    assert read(sweep("random", parameters=parameters, run_cap=5)).data == document.data


def test_early_terminate_becomes_an_early_stop_that_decides_alike() -> None:
    stop = {"type": "hyperband", "min_iter": 3}
    document = read(sweep(early_terminate=stop, metric={"name": "perplexity"}))
    expected = {
        "method": "wandb_hyperband",
        "metric": "perplexity",
        "options": {"min_iter": 3, "eta": 3, "strict": True},
    }
    assert document.data["early_stop"] == expected
    assert plan_data(sweep(early_terminate=stop, metric={"name": "perplexity"})).early_stop is not None


@pytest.mark.parametrize("metric", ["loss", "perplexity", "bits_per_byte"])
def test_what_is_stopped_early_by_is_what_is_searched_by(metric: str) -> None:
    parameters = {"stages.1.distill.hardness": {"values": [0.0, 0.5, 1.0]}}
    stages = ["finetune", {"distill": {"teacher": {"model": "builtin:tiny-gpt2"}}}]
    body = {**BODY, "trials": [{"name": "t", "stages": stages}]}
    stop = {"type": "hyperband", "min_iter": 3}
    config = sweep("random", parameters=parameters, metric={"name": metric}, run_cap=3, early_terminate=stop)
    plan = plan_data({**config, "prunegpt": body})
    assert plan.early_stop is not None
    assert plan.early_stop.metric == "perplexity"  # measured; the curve `loss` is blended with the divergence
    assert plan.searches[0].spec.objectives[0].metric == metric
    assert config_of(plan, ["prunegpt"], "spec.yaml")["metric"]["name"] == metric  # and back


def test_early_stopping_by_a_blended_loss_is_refused() -> None:
    stages = ["finetune", {"distill": {"teacher": {"model": "builtin:tiny-gpt2"}}}]
    spec = {"name": "a", **BODY, "trials": [{"name": "t", "stages": stages}], "early_stop": {"metric": "loss"}}
    with pytest.raises(SpecError, match=r"loss of a distillation is blended.*Use metric: perplexity"):
        plan_data(spec)


def test_a_batch_size_on_a_logarithmic_scale_in_steps_of_eight() -> None:
    parameters = {
        "train": {
            "parameters": {
                "learning_rate": {"distribution": "q_log_uniform_values", "min": 1e-5, "max": 1e-2, "q": 1e-4},
                "per_device_train_batch_size": {"distribution": "q_log_uniform_values", "q": 8, "min": 8, "max": 64},
            }
        }
    }
    (search,) = plan_data(sweep("bayes", parameters=parameters, metric={"name": "perplexity"}, run_cap=6)).searches
    space = search.spec.space
    assert space["train.per_device_train_batch_size"].corners == (8, 64)
    assert space["train.learning_rate"].quantum == 1e-4


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("learning_rate", "train.learning_rate"),
        ("weight_decay", "train.weight_decay"),
        ("batch_size", "train.per_device_train_batch_size"),
        ("epochs", "train.num_train_epochs"),
        ("hardness", "stages.N.distill.hardness"),
        ("sparsity", "stages.N.prune.sparsity"),
    ],
)
def test_a_flat_name_is_refused_with_its_path(name: str, path: str) -> None:
    with pytest.raises(SpecError, match=rf"unknown key '{name}'.*Write {path}"):
        plan_data(sweep(parameters={name: {"values": [0.1, 0.2]}}))


def test_a_metrics_target_is_the_target_of_the_sweep() -> None:
    metric = {"name": "perplexity", "target": 20}
    target = plan_data(sweep(metric=metric)).target
    assert target is not None
    assert (target.metric, target.value, target.wanted) == ("perplexity", 20, "minimize")
    sparser = plan_data(sweep(metric={"name": "sparsity", "target": 0.9})).target
    assert sparser is not None
    assert sparser.wanted == "minimize"  # W&B's own default
    assert plan_data(sweep(metric={"name": "perplexity"})).target is None
    with pytest.raises(SpecError, match=r"unknown metric 'perplexty'. Did you mean 'perplexity'"):
        plan_data(sweep(metric={"name": "perplexty", "target": 20}))


def test_program_names_the_spec_and_trial_chooses_among_its_trials(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        textwrap.dedent("""\
            name: study
            base: {model: builtin:tiny-gpt2, data: {path: builtin:text, block_size: 128}}
            trials:
              - {name: dense}
              - {name: layer, stages: [finetune, {prune: {sparsity: 0.8}}], vary: {stages.1.prune.layers: [0, 1, 2]}}
        """)
    )
    (tmp_path / "hand.yaml").write_text(
        "program: study.yaml\nmethod: grid\n"
        "parameters: {trial: {values: [dense, layer-layers=2]}, seeds: {values: [1, 2]}}\n"
    )
    plan = plan_file(tmp_path / "hand.yaml")
    assert plan.name == "hand"
    assert [trial.name for trial in plan.trials] == [
        "dense-seeds=1",
        "dense-seeds=2",
        "layer-layers=2-seeds=1",
        "layer-layers=2-seeds=2",
    ]
    assert [trial.seed for trial in plan.trials] == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("metod: 3\n", "metod", "unknown key of a W&B sweep 'metod'. Did you mean 'method'"),
        ("run_cap: 0\n", "run_cap", "run_cap must be a whole number"),
        ("metric: perplexity\n", "metric", "metric must be a mapping with a name"),
        ("metric: {name: loss, target: low}\n", "metric.target", "target must be a number, got 'low'"),
        ("early_terminate: {type: median}\n", "early_terminate", "must be {type: hyperband"),
        ("early_terminate: {type: hyperband, min_iter: 2}\n", "metric", "early_terminate needs a metric"),
        ("program: train.py\n", "program", "program must be a spec"),
        ("scheduler: {engine: optuna}\n", "scheduler", "can only be run by W&B"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, where: str, message: str) -> None:
    body = "method: grid\nparameters: {train.seed: {values: [1]}}\n"
    with pytest.raises(SpecError) as caught:
        parse_document(body + text, "hand.yaml")
    problem = next(one for one in caught.value.problems if one.where == where)
    assert message in problem.message
    assert where == "metric" or problem.line == 3


def test_a_problem_of_the_spec_it_means_is_told_where_the_config_says_it() -> None:
    text = textwrap.dedent("""\
        method: grid
        prunegpt:
          base: {model: builtin:tiny-gpt2, data: {path: builtin:text, block_size: 128}}
          trials:
            - {name: pruned, stages: [{prune: {sparsity: 0.5}}]}
        parameters:
          train: {parameters: {learning_rate: {values: [1.0e-3]}}}
          stages.0.prune:
            parameters:
              sparsity:
                values: [0.5, 50]
    """)
    document = parse_document(text, "hand.yaml")
    (problem,) = expand(document).problems
    assert "Did you mean 0.5?" in problem.message
    assert problem.line == 10
    assert problem.where == "trials.0.vary.stages.0.prune.sparsity"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (sweep("random"), "must end: give run_cap"),
        (sweep("bayes", run_cap=3, parameters={"train.seed": {"distribution": "normal"}}), "bayes takes values"),
        (sweep("gird"), "unknown method 'gird'. Did you mean 'grid'"),
        (sweep(parameters={"train.seed": {"min": 0.0, "max": 1.0}}), "a grid needs values"),
        (sweep(parameters={"trial": {"values": ["purned"]}}), "unknown trial 'purned'. Did you mean 'pruned'"),
        (sweep(parameters={"stages.7.prune": {"value": 1}}), "stages.7.prune: the list has 2 elements"),
        (sweep(prunegpt={**BODY, "trails": []}), "unknown key 'trails'. Did you mean 'trials'"),
        (sweep(prunegpt={**BODY, "trials": [*BODY["trials"], {"name": "dense"}]}), "must say which: trial:"),
    ],
)
def test_what_cannot_be_run_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(config)
    assert message in str(caught.value)


# -- the other way round -----------------------------------------------------------------------------------------

SETTINGS: dict[str, list[Any]] = {
    "stages.1.prune.sparsity": [0.5, 0.6, 0.8],
    "stages.1.prune.pattern": ["unstructured", "[4, 4]"],
    "train.learning_rate": [1e-3, 1e-4],
    "train.warmup_steps": [0, 10],
    "evaluate.max_windows": [4, 8],
}


def violations(config: dict[str, Any]) -> list[str]:
    sweeps = pytest.importorskip("sweeps.config", reason="needs the package sweeps, the reference of W&B sweep configs")
    found: list[str] = sweeps.schema_violations_from_proposed_config(config)
    return found


def config(plan: SweepPlan, only: str | None = None) -> dict[str, Any]:
    return config_of(plan, ["${env}", "prunegpt", "wandb", "trial", "${args_json_file}"], "study.yaml", only)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(SETTINGS)), st.integers(1, 3), max_size=4),
    st.lists(st.integers(0, 9), min_size=1, max_size=2, unique=True),
)
def test_a_grid_of_ours_is_valid_there_and_comes_back_as_the_same_trials(
    lengths: dict[str, int], seeds: list[int]
) -> None:
    vary = {path: SETTINGS[path][:length] for path, length in lengths.items()}
    trial = {**BODY["trials"][0], **({"vary": vary} if vary else {}), "seeds": seeds}
    plan = plan_data({"name": "study", **BODY, "trials": [trial]})
    made = config(plan)
    assert violations(made) == []
    if vary:
        assert "trial" not in made["parameters"]
    body = {**BODY, "trials": [{**BODY["trials"][0], "seeds": seeds}] if vary else [trial]}
    if not vary and len(seeds) == 1:
        return
    back = plan_data({**made, "prunegpt": body})
    assert {one.key for one in back.trials} == {one.key for one in plan.trials}


def test_trials_that_are_no_grid_are_listed_by_name() -> None:
    plan = plan_data({"name": "study", **BODY, "trials": [{"name": "dense"}, *BODY["trials"]]})
    made = config(plan)
    assert made["parameters"] == {"trial": {"values": ["dense", "pruned"]}}
    assert violations(made) == []
    assert config(plan, "d*")["parameters"] == {"trial": {"values": ["dense"]}}
    with pytest.raises(SpecError, match=r"matches none\. There are: pruned, dense"):
        config(plan, "prunde")


SEARCH: dict[str, Any] = {
    "space": {
        "train.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
        "train.warmup_steps": {"low": 0, "high": 20},
        "train.weight_decay": {"low": 0.0, "high": 0.5},
        "stages.1.prune.sparsity": {"low": 0.5, "high": 0.9, "step": 0.1},
        "train.gradient_accumulation_steps": {"low": 1, "high": 8, "log": True},
        "train.lr_scheduler_type": ["linear", "cosine"],
    },
    "n_trials": 5,
}


def searched(**more: Any) -> SweepPlan:
    top = {key: more.pop(key) for key in ("early_stop", "target") if key in more}
    trial = {**BODY["trials"][0], "name": "found-{number}", "search": {**SEARCH, **more}}
    return plan_data({"name": "study", **BODY, "trials": [trial], **top})


@pytest.mark.parametrize("searches", [False, True])
def test_a_target_of_ours_is_that_of_the_metric(searches: bool) -> None:
    target = {"metric": "perplexity", "value": 20.5}
    plan = searched(target=target) if searches else plan_data({"name": "study", **BODY, "target": target})
    made = config(plan)
    assert made["metric"] == {"name": "perplexity", "goal": "minimize", "target": 20.5}
    assert violations(made) == []
    back = plan_data({**made, "prunegpt": BODY})
    assert back.target is not None
    assert (back.target.metric, back.target.value) == ("perplexity", 20.5)


def test_a_search_of_ours_is_valid_there_and_comes_back() -> None:
    made = config(searched(early_stop={"method": "wandb_hyperband", "options": {"min_iter": 3}}))
    assert violations(made) == []
    assert made["method"] == "bayes"
    assert made["run_cap"] == 5
    assert made["early_terminate"] == {"type": "hyperband", "min_iter": 3}
    (back,) = plan_data(
        {**made, "prunegpt": {**BODY, "trials": [{**BODY["trials"][0], "name": "found-{number}"}]}}
    ).searches
    ours = searched().searches[0].spec.space
    for path, dimension in back.spec.space.items():
        if path != "stages.1.prune.sparsity":  # its steps are listed
            assert dimension == ours[path]
    assert back.spec.space["stages.1.prune.sparsity"].values == pytest.approx((0.5, 0.6, 0.7, 0.8, 0.9))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"objectives": ["perplexity", "sparsity"]}, "by one metric without constraints"),
        ({"constraints": ["sparsity >= 0.5"]}, "by one metric without constraints"),
        ({"early_stop": "median"}, "by hyperband only; early_stop is median"),
        ({"target": {"metric": "loss", "value": 2}}, "minimize perplexity; target is to minimize loss"),
    ],
)
def test_what_wandb_cannot_search_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        config(searched(**more))

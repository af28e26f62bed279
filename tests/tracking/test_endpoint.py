"""The W&B protocol as clients speak it, without a client: sweeps, agents, online runs, what they stream."""

import json
import os
import re
import shutil
import time
from typing import Any

import pytest

from prunegpt.points import Point
from prunegpt.store import Store
from prunegpt.sweep.recovery import OUTSIDE, is_outside, recover
from prunegpt.tracking.claims import Claim, claim_path
from tests.support.waiting import until
from tests.tracking.endpoint_client import DOCUMENTS, GRID, Client


def test_who_is_there_and_what_is_not(client: Client) -> None:
    assert client.ask("Viewer")["viewer"]["entity"] == "local"
    with pytest.raises(AssertionError, match="has no operation 'DeleteEverything'"):
        client.ask("DeleteEverything")
    assert client.http.post("/graphql", content=b"no json").status_code == 400
    assert client.http.post("/files/local/mine/abc/file_stream", content=b"[]").status_code == 400


def test_a_query_is_answered_by_its_fields_whatever_it_is_called(client: Client) -> None:
    client.ask("UpsertBucket", name="abc123", project="mine", config="{}")
    client.stream("abc123", [{"_step": 0, "loss": 1.0}])
    query = """
        query ($where: String, $new: OfALaterVersion = null) {
          mine: model(name: $where) { ...Run }
          viewer { entity }
        }
        fragment Run on Project { bucket(name: "abc123") { historyLineCount } }
    """
    found = client.http.post("/graphql", json={"query": query, "variables": {"where": "mine"}}).json()["data"]
    assert found["mine"]["bucket"]["historyLineCount"] == 1
    assert found["viewer"]["entity"] == "local"
    for bad, message in (
        ("query {", "must be GraphQL"),
        ("{ model { artifacts { id } } }", "no operation '': .*artifacts"),
    ):
        told = client.http.post("/graphql", json={"query": bad}).json()["errors"][0]["message"]
        assert re.search(message, told)


def test_a_sweep_is_kept_over_a_restart(client: Client) -> None:
    name = client.sweep()
    assert client.ask("SweepWithRuns", sweep=name)["project"]["sweep"]["state"] == "PENDING"
    agent = client.ask("CreateAgent", sweep=name, host="h")["createAgent"]["agent"]["id"]
    ((first),) = client.heartbeat(agent)
    assert first["args"] == {"lr": {"value": 0.1}}
    again = client.after_restart()
    found = again.ask("SweepWithRuns", sweep=name)["project"]["sweep"]
    assert json.loads(found["config"]) == GRID
    assert found["state"] == "RUNNING"
    assert [edge["node"]["name"] for edge in found["runs"]["edges"]] == [first["run_id"]]
    assert again.heartbeat(agent, first["run_id"]) == []


def test_an_unknown_sweep_is_null_and_an_unknown_agent_404(client: Client) -> None:
    assert client.ask("SweepWithRuns", sweep="nothere1")["project"]["sweep"] is None
    asked = {"query": DOCUMENTS["Heartbeat"], "variables": {"id": "nobody", "runState": "{}"}}
    assert client.http.post("/graphql", json=asked).status_code == 404


def test_a_bad_sweep_is_refused_with_every_problem(client: Client) -> None:
    with pytest.raises(AssertionError, match="a grid needs values"):
        client.sweep({"method": "grid", "parameters": {"lr": {"min": 0.0, "max": 1.0}}})
    with pytest.raises(AssertionError, match="must be a mapping"):
        client.sweep([1, 2])


@pytest.mark.parametrize(("state", "command"), [("PAUSED", []), ("FINISHED", [{"type": "exit"}])])
def test_a_sweep_is_paused_or_stopped_by_its_id(client: Client, state: str, command: list[Any]) -> None:
    name = client.sweep()
    identity = client.ask("SweepWithRuns", sweep=name)["project"]["sweep"]["id"]
    client.ask("UpsertSweep", id=identity, state=state, entityName="local", projectName="mine")
    agent = client.ask("CreateAgent", sweep=name, host="h")["createAgent"]["agent"]["id"]
    assert client.heartbeat(agent) == command
    assert client.ask("SweepWithRuns", sweep=name)["project"]["sweep"]["state"] == state


def test_an_online_run_is_a_trial_with_curves_while_it_runs(client: Client) -> None:
    config = json.dumps({"lr": {"value": 0.1}, "_wandb": {"value": {"python": "3"}}})
    made = client.ask("UpsertBucket", name="abc123", project="mine", displayName="first", config=config, groupName="g")
    assert made["upsertBucket"]["inserted"]
    rows = [{"_step": 0, "loss": 3.0, "acc": {"top1": 0.5}, "_timestamp": 5.0}, {"_step": 1, "loss": "NaN"}]
    client.stream("abc123", rows)
    with Store.open(client.root) as store:
        (trial,) = store.results("wandb-mine")
        assert (trial.state, trial.label, trial.group, trial.config) == ("running", "first", "g", {"lr": 0.1})
        assert [(point.step, point.value) for point in store.points(trial.id, "loss")] == [(0, 3.0), (1, None)]
        assert store.points(trial.id, "acc.top1")[0].value == 0.5
        assert recover(client.root, store) == []  # a coordinator that starts now leaves it alone
        assert is_outside(client.root.path / trial.folder)
    summary = {"offset": 0, "content": [json.dumps({"perplexity": 12.5, "sparsity": 0.5})]}
    client.stream("abc123", [], offset=2, files={"wandb-summary.json": summary}, complete=True, exitcode=0)
    with Store.open(client.root) as store:
        trial = store.result("wandb-mine/abc123")
        assert trial.state == "finished"
        assert trial.logged == {"perplexity": 12.5, "sparsity": 0.5}
        assert (trial.evaluation, trial.sparsity) == (None, None), "only what is measured here is a perplexity"


def test_rows_that_are_sent_again_are_passed_over_also_after_a_restart(client: Client) -> None:
    client.ask("UpsertBucket", name="abc123", project="mine", config="{}")
    rows = [{"_step": step, "loss": float(step)} for step in range(4)]
    client.stream("abc123", rows[:2])
    client.stream("abc123", rows[:3])
    again = client.after_restart()
    status = again.ask("RunResumeStatus", name="abc123", project="mine")["model"]["bucket"]
    assert status["historyLineCount"] == 3
    assert json.loads(json.loads(status["historyTail"])[0])["_step"] == 2
    again.stream("abc123", rows[2:], offset=2)
    with Store.open(client.root) as store:
        assert [point.step for point in store.points("wandb-mine/abc123", "loss")] == [0, 1, 2, 3]
        folder = client.root.path / store.result("wandb-mine/abc123").folder
    lines = (folder / "points.jsonl").read_text().splitlines()
    assert [Point.model_validate_json(line).step for line in lines] == [0, 1, 2, 3]


def test_what_a_run_has_said_of_itself_outlasts_a_restart(client: Client) -> None:
    config = json.dumps({"lr": {"value": 0.1}, "net": {"value": {"width": 3}}})
    client.ask("UpsertBucket", name="abc123", project="mine", displayName="first", config=config, groupName="g")
    again = client.after_restart()
    status = again.ask("RunResumeStatus", name="abc123", project="mine")["model"]["bucket"]
    given = {"lr": {"value": 0.1}, "net": {"value": {"width": 3}}}
    assert json.loads(status["config"]) == given | {"_wandb": {"value": {"t": {}}}}
    assert status["displayName"] == "first"
    again = client.after_restart()
    again.stream("abc123", [], files={"wandb-summary.json": {"offset": 0, "content": ['{"perplexity": 12.5}']}})
    more = json.dumps({"later": {"value": 2}, "lr": {"value": 0.2}})
    changed = again.ask("UpsertBucket", name="abc123", project="mine", config=more)
    assert not changed["upsertBucket"]["inserted"]
    with Store.open(client.root) as store:
        trial = store.result("wandb-mine/abc123")
        assert (trial.label, trial.group) == ("first", "g")
        assert trial.config == {"lr": 0.2, "net": {"width": 3}, "later": 2}


def test_a_run_that_logs_nothing_lives_as_long_as_its_client_speaks(client: Client) -> None:
    client.ask("UpsertBucket", name="abc123", project="mine", config="{}")
    with Store.open(client.root) as store:
        folder = client.root.path / store.result("wandb-mine/abc123").folder
    os.utime(folder / OUTSIDE, (time.time() - 700,) * 2)
    assert not is_outside(folder)
    assert client.http.post("/files/local/mine/abc123/file_stream", json={"complete": False}).status_code == 200
    assert is_outside(folder)


def test_a_run_whose_trial_was_removed_begins_anew_and_disturbs_no_other(client: Client) -> None:
    client.ask("UpsertBucket", name="abc123", project="mine", config="{}")
    with Store.open(client.root) as store:
        store.remove_sweep("wandb-mine")
    shutil.rmtree(client.root.path / "trials")
    client.ask("UpsertBucket", name="other1", project="else", config="{}")
    client.stream("abc123", [{"_step": 0, "loss": 1.0}])
    with Store.open(client.root) as store:
        assert [point.value for point in store.points("wandb-mine/abc123", "loss")] == [1.0]


def test_how_a_run_of_an_agents_ended_outlasts_a_restart(client: Client) -> None:
    name = client.sweep({**GRID, "metric": {"name": "loss"}})
    agent = client.ask("CreateAgent", sweep=name, host="h")["createAgent"]["agent"]["id"]
    ((first),) = client.heartbeat(agent)
    client.ask("UpsertBucket", name=first["run_id"], project="mine", config="{}", sweep=name)
    client.stream(first["run_id"], [{"_step": 0, "loss": 3.0}, {"_step": 1, "loss": 2.5}], complete=True, exitcode=1)
    again = client.after_restart()
    again.heartbeat(agent)
    (node, _) = again.ask("SweepWithRuns", sweep=name)["project"]["sweep"]["runs"]["edges"]
    assert node["node"]["state"] == "failed"
    assert json.loads(node["node"]["summaryMetrics"]) == {"loss": 2.5}


def test_a_run_that_fails_is_a_failed_trial(client: Client) -> None:
    client.ask("UpsertBucket", name="abc123", project="mine", config="{}")
    output = {"offset": 0, "content": ["Traceback", "ValueError: no\n"]}
    client.stream("abc123", [{"_step": 0, "loss": 1.0}], files={"output.log": output}, complete=True, exitcode=1)
    with Store.open(client.root) as store:
        trial = store.result("wandb-mine/abc123")
    assert (trial.state, trial.error) == ("failed", "it ended with 1.")
    assert (client.root.path / trial.folder / "log.txt").read_text() == "Traceback\nValueError: no\n"


def test_a_run_of_one_of_our_own_trials_is_not_kept_a_second_time(client: Client) -> None:
    path = claim_path(client.root, "abc123")
    Claim(run="abc123", trial="small/one").write(path)
    client.ask("UpsertBucket", name="abc123", project="mine", config="{}")
    client.stream("abc123", [{"_step": 0, "loss": 1.0}])
    assert client.ask("RunResumeStatus", name="abc123", project="mine")["model"]["bucket"]["historyLineCount"] == 1
    assert not (client.root.path / "trials").exists()
    page = client.http.get("/local/mine/runs/abc123", follow_redirects=False)
    assert page.headers["location"] == "/trials/small/one"


def test_an_agents_run_ends_as_its_claim_says(client: Client) -> None:
    name = client.sweep({**GRID, "metric": {"name": "perplexity"}, "command": ["prunegpt"]})
    agent = client.ask("CreateAgent", sweep=name, host="h")["createAgent"]["agent"]["id"]
    ((first),) = client.heartbeat(agent)
    claim = Claim(run=first["run_id"], state="finished", metrics={"perplexity": 7.5})
    claim.write(claim_path(client.root, first["run_id"]))
    ((second),) = client.heartbeat(agent)
    assert second["args"] == {"lr": {"value": 0.01}}
    (node, _) = client.ask("SweepWithRuns", sweep=name)["project"]["sweep"]["runs"]["edges"]
    assert node["node"]["state"] == "finished"
    assert json.loads(node["node"]["summaryMetrics"]) == {"perplexity": 7.5}


def test_uploaded_files_lie_beside_the_run_and_nowhere_else(client: Client) -> None:
    client.ask("UpsertBucket", name="abc123", project="mine", config="{}")
    asked = client.ask("CreateRunFiles", entity="local", project="mine", run="abc123", files=["config.yaml", "../x"])
    (file,) = asked["createRunFiles"]["files"]
    assert client.http.put(file["uploadUrl"], content=b"a: 1").status_code == 200
    client.http.put("/files/local/mine/abc123/upload/%2e%2e/%2e%2e/escaped", content=b"x")
    found = [path for path in client.root.path.rglob("*") if path.name in ("config.yaml", "escaped")]
    assert [path.relative_to(client.root.path).parts[-2:] for path in found] == [("files", "config.yaml")]


def test_names_of_foreign_runs_stay_inside_the_root(client: Client) -> None:
    for name in ("../../evil", "..", "."):
        client.ask("UpsertBucket", name=name, project="../up", config="{}")
    outside = [path for path in client.root.path.parent.iterdir() if path != client.root.path]
    assert outside == []
    with Store.open(client.root) as store:
        assert [sweep.name for sweep in store.sweeps()] == ["wandb-.._up"]
        assert all(trial.name[0].isalnum() for trial in store.results("wandb-.._up"))


def test_runs_of_two_entities_and_of_projects_with_one_folders_name_stay_apart(client: Client) -> None:
    places = [("one", "p"), ("two", "p"), ("local", "col 2"), ("local", "col_2")]
    for number, (entity, project) in enumerate(places):
        client.ask("UpsertBucket", name="same", project=project, entity=entity, config="{}")
        client.stream("same", [{"_step": 0, "loss": float(number)}], at=f"{entity}/{project}")
    again = client.after_restart()
    for number, (entity, project) in enumerate(places):
        again.stream("same", [{"_step": 1, "loss": 10.0 + number}], 1, at=f"{entity}/{project}")
    with Store.open(client.root) as store:
        found = [trial for sweep in store.sweeps() for trial in store.results(sweep.name)]
        runs = [(trial.plan.run.entity, trial.plan.run.project) for trial in found if trial.plan.run]
        assert sorted(runs) == sorted(places)
        curves = [[point.value for point in store.points(trial.id, "loss")] for trial in found]
        assert sorted(curves) == [[float(number), 10.0 + number] for number in range(4)]


def test_ids_with_one_folders_name_are_two_runs(client: Client) -> None:
    for name in ("a b", "a_b"):
        client.ask("UpsertBucket", name=name, project="mine", config="{}")
    with Store.open(client.root) as store:
        assert sorted(trial.plan.run.id for trial in store.results("wandb-mine") if trial.plan.run) == ["a b", "a_b"]


def test_only_the_group_that_a_run_names_is_its_seed_group(client: Client) -> None:
    for name, more in (("r1", {}), ("r2", {}), ("r3", {"groupName": "g"}), ("r4", {"groupName": "g"})):
        config = json.dumps({"lr": {"value": name}})
        client.ask("UpsertBucket", name=name, project="mine", displayName="one name", config=config, **more)
    with Store.open(client.root) as store:
        assert [trial.group for trial in store.results("wandb-mine")] == ["r1", "r2", "g", "g"]


def test_another_execution_under_the_id_of_a_run_is_another_attempt(client: Client) -> None:
    client.ask("UpsertBucket", name="abc123", project="mine", config="{}")
    client.stream("abc123", [{"_step": step, "_timestamp": 1.0 + step, "loss": 1.0} for step in range(3)])
    client.stream("abc123", [{"_step": 0, "_timestamp": 9.0, "loss": 2.0}])
    with Store.open(client.root) as store:
        assert [point.value for point in store.points("wandb-mine/abc123", "loss")] == [2.0]
        first, second = store.attempts("wandb-mine/abc123")
        assert (first.state, first.error, second.state) == (
            "stopped", "another execution has taken its id.", "running"
        )  # fmt: skip


def test_a_cut_off_execution_that_is_sent_after_it_was_resumed_loses_nothing(client: Client) -> None:
    def rows(first: int, last: int, start: float) -> list[dict[str, Any]]:
        return [{"_step": step, "_timestamp": start + step, "loss": start + step} for step in range(first, last)]

    client.ask("UpsertBucket", name="abc123", project="mine", config="{}")
    client.stream("abc123", rows(0, 2, 0.0))  # its rows 2 and 3 were not sent
    client.stream("abc123", rows(2, 4, 100.0), offset=2)
    for offset in (0, 4, 6):  # a sync, two times
        client.stream("abc123", rows(0, 4, 0.0), offset=offset)
    with Store.open(client.root) as store:
        found = [(point.step, point.value) for point in store.points("wandb-mine/abc123", "loss")]
    assert found == [(0, 0.0), (1, 1.0), (2, 102.0), (3, 103.0), (4, 2.0), (5, 3.0)]


def test_executions_that_are_sent_later_come_behind_what_is_there(client: Client) -> None:
    """As an older client's `wandb sync` sends each folder of a run, from its first row on."""
    parts = [
        [{"_step": step, "_timestamp": 10.0 * part + step, "loss": float(part)} for step in (0, 1)] for part in (0, 1)
    ]
    for _ in range(2):
        for part in parts:
            client.ask("UpsertBucket", name="abc123", project="mine", config="{}", host="h")
            client.stream("abc123", part, complete=True)
    with Store.open(client.root) as store:
        assert [point.value for point in store.points("wandb-mine/abc123", "loss")] == [0.0, 0.0, 1.0, 1.0]
        assert len(store.attempts("wandb-mine/abc123")) == 1


def test_a_run_that_was_killed_with_its_server_is_closed_and_comes_back(client: Client) -> None:
    client.ask("UpsertBucket", name="abc123", project="mine", config="{}")
    client.stream("abc123", [{"_step": 0, "loss": 1.0}])
    with Store.open(client.root) as store:
        folder = client.root.path / store.result("wandb-mine/abc123").folder
        os.utime(folder / OUTSIDE, (time.time() - 700,) * 2)
        again = client.after_restart()
        until(lambda: store.result("wandb-mine/abc123").state == "failed", "the server's verdict")
        assert store.result("wandb-mine/abc123").error == "its client has not reported for 600 s."
        again.stream("abc123", [{"_step": 1, "loss": 2.0}], offset=1)
        assert store.result("wandb-mine/abc123").state == "running"
        assert [point.step for point in store.points("wandb-mine/abc123", "loss")] == [0, 1]


def test_tags_notes_and_system_metrics_are_kept(client: Client) -> None:
    about = {"tags": ["a", "b"], "notes": "why", "jobType": "train"}
    client.ask("UpsertBucket", name="abc123", project="mine", config="{}", **about)
    event = {"offset": 0, "content": [json.dumps({"system.cpu": 12.5, "_runtime": 1.0, "_timestamp": 5.0})]}
    for _ in range(2):
        client.stream("abc123", [], files={"wandb-events.jsonl": event})
    client.ask("UpsertBucket", name="abc123", project="mine", config="{}")  # says nothing new of them
    with Store.open(client.root) as store:
        run = store.result("wandb-mine/abc123").plan.run
        assert run is not None
        assert (run.tags, run.notes, run.job_type) == (("a", "b"), "why", "train")
        assert [(point.value, point.time) for point in store.points("wandb-mine/abc123", "system.cpu")] == [(12.5, 5.0)]


def test_the_last_run_of_an_agent_that_has_ended_is_finished(client: Client) -> None:
    name = client.sweep()
    agent = client.ask("CreateAgent", sweep=name, host="h")["createAgent"]["agent"]["id"]
    ((first),) = client.heartbeat(agent)
    client.ask("UpsertBucket", name=first["run_id"], project="mine", config="{}", sweep=name)
    client.stream(first["run_id"], [{"_step": 0, "loss": 3.0}], complete=True, exitcode=0)
    (edge, *_) = client.ask("SweepWithRuns", sweep=name)["project"]["sweep"]["runs"]["edges"]
    assert edge["node"]["state"] == "finished", "no heartbeat has told of it"

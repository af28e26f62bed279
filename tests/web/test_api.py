"""What the API says of a root with every kind of trial."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from prunegpt.points import Point
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.control import Action, take
from prunegpt.sweep.lock import coordinating
from prunegpt.sweep.queue import Ticket
from tests.support.served import HEADERS, ORIGIN, open_app
from tests.support.study import Wanted, grow, make_root, study
from tests.support.waiting import until

API = "/api/v1"
SWEEP = f"{API}/sweeps/study"
TRIALS = f"{SWEEP}/trials"


def get(client: TestClient, path: str, **query: Any) -> Any:
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(client: TestClient, **query: Any) -> list[str]:
    return [row["name"] for row in get(client, TRIALS, **query)["trials"]]


def test_the_list_of_sweeps_counts_and_names_the_best(client: TestClient) -> None:
    (sweep,) = get(client, f"{API}/sweeps")["sweeps"]
    wanted = study()
    assert sweep["name"] == "study"
    assert sweep["trials"] == len(wanted)
    for state in ("finished", "running", "waiting", "failed", "diverged", "stopped"):
        assert sweep[state] == sum(1 for one in wanted if one.state == state)
    best = min((one for one in wanted if one.state == "finished"), key=lambda one: one.perplexity)
    assert sweep["best"]["trial"] == f"study/{best.name}"
    assert sweep["best"]["perplexity"] == pytest.approx(best.perplexity)
    assert sweep["running_now"] is False


def test_a_root_where_nothing_has_run_is_empty_and_fills_later(tmp_path: Path) -> None:
    root = Root(tmp_path / "runs")
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        assert get(client, f"{API}/sweeps") == {"sweeps": [], "coordinator": None, "queue": []}
        assert client.get("/").status_code == 200
        assert client.get(SWEEP).status_code == 404
        assert not root.path.exists()
        make_root(root.path, study()[:2])
        found = until(lambda: get(client, f"{API}/sweeps")["sweeps"], "the sweep")
        assert len(found) == 1


def test_a_sweep_tells_what_runs_and_how_far_it_is(client: TestClient) -> None:
    sweep = get(client, SWEEP)
    assert sweep["state"] == "running"
    assert sweep["coordinator"] is None
    assert sweep["tables"] == ["Pruning and distillation", "One layer at 80%"]
    assert sweep["optuna"] is None
    assert sweep["counts"] == {
        state: sum(1 for one in study() if one.state == state)
        for state in ("finished", "running", "waiting", "failed", "diverged", "stopped")
    }
    assert sweep["best"] == get(client, f"{API}/sweeps")["sweeps"][0]["best"]
    (slot,) = sweep["slots"]
    assert (slot["trial"], slot["kind"], slot["step"], slot["total"]) == ("study/going", "distill", 58, 200)
    assert sweep["progress"]["done"] == sum(1 for one in study() if one.state not in ("running", "waiting"))


def test_a_sweep_with_a_search_says_what_writes_it_for_optunas_dashboard(tmp_path: Path) -> None:
    search = {"space": {"x": {"low": 0.0, "high": 1.0}}, "n_trials": 3}
    root = make_root(tmp_path / "runs", searches=[{"name": "found", "search": search}])
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        sweep = get(client, SWEEP)
        assert sweep["optuna"] == f"prunegpt sweep study study --out study.db --root {root.path}"
        assert [one["name"] for one in sweep["searches"]] == ["found"]
        assert sweep["progress"]["total"] == get(client, TRIALS)["total"] + 3, "those it will suggest count"
        assert client.get("/sweeps/study/optuna").status_code == 404


def test_columns_put_what_was_swept_after_the_name(client: TestClient) -> None:
    columns = get(client, TRIALS)["columns"]
    assert columns[0]["key"] == "name"
    swept = [column for column in columns if column["swept"]]
    assert columns[1 : 1 + len(swept)] == swept
    assert {"swept.stages.1.prune.method", "swept.stages.1.prune.sparsity"} <= {column["key"] for column in swept}
    numeric = {column["key"]: column["numeric"] for column in columns}
    assert numeric["swept.stages.1.prune.sparsity"]
    assert not numeric["swept.stages.1.prune.method"]


def test_a_row_says_what_was_measured(client: TestClient) -> None:
    dashboard = client.app.state.dashboard
    dashboard.intervals.find(dashboard.source.trials("study"), seconds=60)  # a busy machine computes them later
    rows = {row["name"]: row for row in get(client, TRIALS)["trials"]}
    row = rows["magnitude-0.9"]
    assert row["perplexity"] == pytest.approx(next(one.perplexity for one in study() if one.name == "magnitude-0.9"))
    assert row["low"] < row["perplexity"] < row["high"]
    assert row["loss"] == pytest.approx(math.log(row["perplexity"]))
    assert (row["sparsity"], row["target"]) == (0.9, 0.9)
    assert row["swept"] == {"stages.1.prune.method": "magnitude", "stages.1.prune.sparsity": 0.9}
    assert [stage["state"] for stage in row["stages"]] == ["published"] * 3
    for name, state in (("too-big", "failed"), ("going", "running"), ("too-fast", "diverged"), ("later", "waiting")):
        assert rows[name]["state"] == state
        assert rows[name]["perplexity"] is None
        assert [stage["state"] for stage in rows[name]["stages"]][-1] == ("waiting" if state == "waiting" else state)


def test_trials_are_sorted_by_any_column_with_missing_values_last(client: TestClient) -> None:
    everything = names(client)
    for column in get(client, TRIALS)["columns"]:
        for descending in (False, True):
            answer = get(client, TRIALS, sort=column["key"], descending=descending)
            assert sorted(row["name"] for row in answer["trials"]) == sorted(everything)
    by_perplexity = get(client, TRIALS, sort="perplexity")["trials"]
    values = [row["perplexity"] for row in by_perplexity if row["perplexity"] is not None]
    assert values == sorted(values)
    assert [row["perplexity"] for row in by_perplexity[len(values) :]] == [None] * (len(by_perplexity) - len(values))
    down = [row["perplexity"] for row in get(client, TRIALS, sort="perplexity", descending=True)["trials"]]
    assert down[: len(values)] == values[::-1]
    assert down[-1] is None


def test_trials_are_filtered_and_paged(client: TestClient) -> None:
    assert names(client, state="failed,diverged") == ["too-big", "too-fast"]
    assert set(names(client, q="WANDA")) == {f"wanda-{share:g}" for share in (0.5, 0.6, 0.7, 0.8, 0.9)}
    everything = names(client)
    paged = [name for offset in range(0, len(everything), 7) for name in names(client, offset=offset, limit=7)]
    assert paged == everything
    assert get(client, TRIALS, limit=1)["total"] == len(everything)


def test_trials_are_filtered_by_one_language(client: TestClient) -> None:
    strong = [one.name for one in study() if one.sparsity > 0.85 and one.state == "finished"]
    assert names(client, where="sparsity > 0.85") == strong
    assert names(client, q="sparsity > 0.85") == strong, "the search box and `where` take the same"
    assert names(client, where="sparsity > 0.85", q="wanda") == ["wanda-0.9"]
    low = names(client, where="prune.method == 'wanda' and perplexity < 80", state="finished,failed")
    assert low == [
        "wanda-0.5",
        "wanda-0.6",
    ]
    rows = list(csv.DictReader(io.StringIO(client.get(f"{SWEEP}/trials.csv", params={"where": "wanda"}).text)))
    assert [row["name"] for row in rows] == [f"wanda-{share:g}" for share in (0.5, 0.6, 0.7, 0.8, 0.9)]
    assert {"own_seconds", "data.block_size", "stages.1.prune.method"} <= set(rows[0]), "every field"
    few = client.get(f"{SWEEP}/trials.csv", params={"columns": "name,perplexity"}).text
    assert few.splitlines()[0] == "name,perplexity"
    records = get(client, f"{SWEEP}/trials.json", where="name == 'going'")["trials"]
    assert [record["name"] for record in records] == ["going"]


def test_every_field_can_be_a_column_and_sorts(client: TestClient) -> None:
    fields = get(client, f"{SWEEP}/fields")["fields"]
    assert {"swept", "trial", "curve", "config"} == {field["origin"] for field in fields}
    everything = sorted(names(client))
    for field in fields:
        found = get(client, TRIALS, columns=field["key"], sort=field["key"])
        assert sorted(row["name"] for row in found["trials"]) == everything
        assert field["key"] in {column["key"] for column in found["columns"]}
        assert all(field["key"] in row["values"] for row in found["trials"])
    size = next(field for field in fields if field["name"] == "data.block_size")
    assert (size["kind"], size["differs"], size["about"]) == ("number", False, "configuration: data.block_size")


def test_groups_have_mean_and_spread_and_open_to_their_trials(client: TestClient) -> None:
    asked = {"columns": "perplexity,sparsity", "sort": "sparsity", "where": "sparsity > 0"}
    found = get(client, f"{SWEEP}/groups", by="method", **asked)
    assert [group["values"] for group in found["groups"]] == [["wanda"], ["magnitude"]]
    wanda = found["groups"][0]
    measured = [one.perplexity for one in study() if one.name.startswith("wanda")]
    figure = wanda["figures"]["perplexity"]
    assert figure["mean"] == pytest.approx(sum(measured) / 5)
    assert (figure["low"], figure["high"]) == (pytest.approx(min(measured)), pytest.approx(max(measured)))
    assert (wanda["count"], wanda["states"]) == (5, {"finished": 5})
    assert names(client, where=wanda["where"]) == [f"wanda-{share:g}" for share in (0.5, 0.6, 0.7, 0.8, 0.9)]
    by_count = get(client, f"{SWEEP}/groups", by="state", sort="count", descending=True)["groups"]
    counts = [group["count"] for group in by_count]
    assert counts == sorted(counts, reverse=True)


def test_what_was_asked_of_a_sweep_is_shown_until_it_happened(own: TestClient, made: Root) -> None:
    assert get(own, SWEEP)["asked"] == ""
    with coordinating(made, "study"):
        own.post(f"{SWEEP}/actions", json={"action": "stop"}, headers=HEADERS).raise_for_status()
        own.post(f"{API}/trials/study/going/actions", json={"action": "stop"}, headers=HEADERS).raise_for_status()
        assert {action.kind for action in take(made)} == {"stop", "stop-trial"}, "taken, and not done yet"
        assert get(own, SWEEP)["asked"] == "stop"
        assert get(own, f"{API}/trials/study/going")["asked"] == "stop"
        assert [row["asked"] for row in get(own, TRIALS, where="name == 'going'")["trials"]] == ["stop"]
    assert get(own, SWEEP)["asked"] == "", "nobody coordinates: it has happened"
    assert get(own, f"{API}/trials/study/going")["asked"] == ""


BAD = {
    "offset=-1": "offset: Input should be greater than or equal to 0",
    "limit=0": "limit: Input should be greater",
    "limit=x": "limit: Input should be a valid integer",
    "colour=red": "colour: Extra inputs are not permitted",
    "where=perplexty<3": "unknown field 'perplexty'. Did you mean 'perplexity'?",
    "where=sparsity>90": "sparsity is between 0 and 1",
    "sort=nothing": "unknown field 'nothing'",
    "columns=seed,nothing": "unknown field 'nothing'",
    "limit=1&limit=2": "limit may be given once; it is given 2 times",
}
assert BAD


@pytest.mark.parametrize(("query", "message"), BAD.items())
def test_a_wrong_question_is_told_what_is_wrong(client: TestClient, query: str, message: str) -> None:
    answer = client.get(f"{TRIALS}?{query}")
    assert answer.status_code == 400
    assert message in answer.json()["error"]


def test_what_is_not_there_is_told_with_the_nearest(client: TestClient) -> None:
    for path, message in (
        (f"{API}/sweeps/studdy", "unknown sweep 'studdy'. Did you mean 'study'"),
        (f"{API}/trials/study/goin", "unknown trial of study 'goin'. Did you mean 'going'"),
        (f"{SWEEP}/figures/pie", "unknown figure of study 'pie'. Valid: "),
        (f"{SWEEP}/tables/none.md", "unknown table of study 'none'. Valid: all, "),
        (f"{API}/trials/study/later/log?attempt=3", "3 is none. Attempts: none"),
        (f"{API}/nowhere", "Not Found"),
    ):
        answer = client.get(path)
        assert answer.status_code == 404
        assert message in answer.json()["error"]


def test_a_trial_has_attempts_lineage_and_differences(client: TestClient) -> None:
    trial = get(client, f"{API}/trials/study/recovered")
    assert trial["state"] == "finished"
    assert trial["interval"]["low"] < trial["stages"][-1]["evaluation"]["perplexity"] < trial["interval"]["high"]
    assert [attempt["number"] for attempt in trial["attempts"]] == [1]
    lineage = {kind: [relative["trial"] for relative in found] for kind, found in trial["lineage"].items()}
    assert lineage["parents"] == ["study/zero-shot", "study/finetuned", "study/magnitude-0.9"]
    assert lineage["teachers"] == ["study/finetuned"]
    back = get(client, f"{API}/trials/study/magnitude-0.9")["lineage"]["children"]
    assert [relative["trial"] for relative in back] == ["study/recovered"]
    different = {one["path"]: (one["base"], one["value"]) for one in trial["differences"]}
    assert different["stages.1.prune.sparsity"] == (None, 0.9)
    assert "model.source" not in different
    assert "--only recovered" in trial["command"]
    assert trial["replay"].endswith("trials/study/recovered/attempt-1")
    assert {curve["name"] for curve in trial["curves"]} >= {"loss", "kd", "perplexity"}


def test_a_log_is_read_from_its_end(client: TestClient, kept: Root) -> None:
    written = (kept.attempt("study", "too-big", 1) / "log.txt").read_text()
    log = get(client, f"{API}/trials/study/too-big/log", tail=1)
    assert log["text"] == written.splitlines(keepends=True)[-1]
    assert log["truncated"] is True
    whole = get(client, f"{API}/trials/study/too-big/log")
    assert whole["text"] == written
    assert whole["size"] == len(whole["text"])
    assert whole["truncated"] is False


def test_a_log_shows_what_a_terminal_would(own: TestClient, made: Root) -> None:
    log = made.attempt("study", "going", 1) / "log.txt"
    log.write_bytes(b"begun\r\nloading:  0%\rloading: 50%\rloading: 100%\ndone\n")
    assert get(own, f"{API}/trials/study/going/log")["text"] == "begun\r\nloading: 100%\ndone\n"


def test_a_huge_log_is_bounded(own: TestClient, made: Root) -> None:
    line = "x" * 99 + "\n"
    (made.attempt("study", "going", 1) / "log.txt").write_bytes(line.encode() * 200_000 + b"\xff\xfe end\n")
    answer = own.get(f"{API}/trials/study/going/log?tail=10000")
    assert len(answer.content) < 2 << 20
    log = answer.json()
    assert (log["size"], log["truncated"]) == (20_000_007, True)
    assert log["text"].startswith(line)
    assert log["text"].endswith("\ufffd\ufffd end\n")


def test_curves_have_the_values_that_were_written(client: TestClient, kept: Root) -> None:
    with Store.open(kept, create=False) as store:
        told = [(point.step, point.value) for point in store.points("study/recovered", "loss", stage=3)]
        tokens = [point.tokens for point in store.points("study/recovered", "loss", stage=3)]
    path = f"{API}/trials/study/recovered/curves"
    (curve,) = get(client, path, name="loss", stage=3)["curves"]
    assert list(zip(curve["x"], curve["y"], strict=True)) == told
    assert curve["offset"] == 200  # steps of the fine-tuning before
    (by_tokens,) = get(client, path, name="loss", stage=3, axis="tokens")["curves"]
    assert by_tokens["x"] == tokens
    (by_time,) = get(client, path, name="loss", stage=3, axis="time")["curves"]
    assert by_time["x"][0] == 0
    assert by_time["x"] == sorted(by_time["x"])
    (few,) = get(client, path, name="loss", stage=3, points=20)["curves"]
    assert len(few["x"]) <= 20
    assert few["total"] == len(told)
    assert max(few["y"]) == max(value for _, value in told if value is not None)
    assert {one["name"] for one in get(client, path, name="sparsity/*")["curves"]} == {
        f"sparsity/transformer.h.0.{part}.weight" for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


def test_a_value_that_is_not_finite_is_null(client: TestClient) -> None:
    (curve,) = get(client, f"{API}/trials/study/too-fast/curves", name="loss")["curves"]
    assert curve["y"][-1] is None
    assert None not in curve["y"][:-1]


def test_layers_come_from_curves_or_from_the_last_count(client: TestClient) -> None:
    moving = get(client, f"{API}/trials/study/recovered/layers")
    assert moving["measured"] is False
    assert [len(row) for row in moving["values"]] == [len(moving["steps"])] * len(moving["tensors"])
    assert len(moving["steps"]) > 1
    still = get(client, f"{API}/trials/study/magnitude-0.9/layers")
    assert still["measured"] is True
    assert len(still["tensors"]) == 24
    assert all(len(row) == 1 and 0.8 < row[0] < 1 for row in still["values"])


def test_every_point_can_be_taken_away(client: TestClient, kept: Root) -> None:
    with Store.open(kept, create=False) as store:
        points = store.points("study/recovered")
    rows = list(csv.DictReader(io.StringIO(client.get(f"{API}/trials/study/recovered/points.csv").text)))
    told = get(client, f"{API}/trials/study/recovered/points.json")["points"]
    assert len(rows) == len(told) == len(points) > 100
    for row, item, point in zip(rows, told, points, strict=True):
        assert (int(row["stage"]), row["name"], int(row["step"])) == (point.stage, point.name, point.step)
        assert float(row["value"]) == item["value"] == point.value
        assert (float(row["time"]), int(row["tokens"])) == (item["time"], item["tokens"]) == (point.time, point.tokens)


def test_every_trial_can_be_taken_away(client: TestClient) -> None:
    answer = client.get(f"{SWEEP}/trials.csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="study-trials.csv"'
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(answer.text))}
    assert list(rows) == [one.name for one in study()]
    for row in get(client, TRIALS)["trials"]:
        assert rows[row["name"]]["perplexity"] == ("" if row["perplexity"] is None else repr(row["perplexity"]))
    records = get(client, f"{SWEEP}/trials.json")["trials"]
    assert [record["name"] for record in records] == list(rows)


def test_tables_are_those_of_the_command_line(client: TestClient, kept: Root) -> None:
    from prunegpt.api import stored
    from prunegpt.registry import RENDERERS
    from prunegpt.report.declared import tables_of

    made = tables_of(stored("study", kept))
    shown = get(client, f"{SWEEP}/tables")["tables"]
    assert [table["title"] for table in shown] == [table.title for table in made]
    assert "<script" not in json.dumps(shown)
    for suffix, format in (("md", "md"), ("tex", "latex"), ("csv", "csv"), ("json", "json"), ("html", "html")):
        every = client.get(f"{SWEEP}/tables/all.{suffix}")
        assert every.text == RENDERERS.load(format)(made)
        first = client.get(f"{SWEEP}/tables/{made[0].name}.{suffix}")
        assert first.text == RENDERERS.load(format)(made[:1])


def test_the_graph_shares_stages_and_says_how_far_they_are(client: TestClient) -> None:
    graph = get(client, f"{SWEEP}/graph")
    nodes = {node["key"]: node for node in graph["nodes"]}
    keys = {stage.key for one in study() for stage in one.chain}
    assert set(nodes) == keys
    for key, node in nodes.items():
        assert node["shared"] == len(node["trials"]) == sum(key in {s.key for s in one.chain} for one in study())
    states = {node["kind"] + "/" + node["state"] for node in nodes.values()}
    assert {"load/published", "finetune/failed", "finetune/diverged", "distill/running", "prune/waiting"} <= states
    assert not any(node["cached"] for node in nodes.values())  # each was computed by the first trial that has it
    edges = {(edge["from"], edge["to"], edge["kind"]) for edge in graph["edges"]}
    expected = {(s.parent, s.key, "parent") for one in study() for s in one.chain if s.parent}
    expected |= {(s.teacher, s.key, "teacher") for one in study() for s in one.chain if s.teacher}
    assert edges == expected


def test_a_stage_that_no_trial_of_the_sweep_computed_was_cached(made: Root) -> None:
    chain = study()[1].chain
    make_root(made.path, [Wanted("same", chain, 60.5)], name="again", windows=False, cached=True)
    make_root(made.path, [Wanted("more", chain, 0, state="running")], name="more", windows=False, cached=True)
    with TestClient(open_app(made), base_url=ORIGIN) as client:
        for sweep, last in (("again", ("published", True)), ("more", ("running", False))):
            nodes = get(client, f"{API}/sweeps/{sweep}/graph")["nodes"]
            assert [(node["state"], node["cached"]) for node in nodes] == [("published", True), last]


def test_a_shared_curve_of_training_is_drawn_once(client: TestClient) -> None:
    traces = get(client, f"{SWEEP}/figures/training")["data"]
    assert {trace["name"] for trace in traces if trace["yaxis"] == "y"} == {"going", "finetuned", "recovered"}


def test_two_trials_are_compared_as_the_command_line_does(client: TestClient, kept: Root) -> None:
    from prunegpt.report.compare import compare
    from prunegpt.report.measure import stored_windows

    pair = ["study/magnitude-0.9", "study/wanda-0.9"]
    found = get(client, f"{API}/compare", trial=pair)
    with Store.open(kept, create=False) as store:
        right = compare(*(store.result(name) for name in pair), stored_windows(kept)).test
    assert right is not None
    (test,) = found["tests"]
    assert (test["a"], test["b"]) == tuple(pair)
    assert (test["p"], test["ratio"], test["low"]) == (right.p_value, right.ratio.value, right.ratio.low)
    assert [row["trial"] for row in found["trials"]] == pair
    differences = {one["path"]: one["values"] for one in found["differences"]}
    assert differences["stages.1.prune.method"] == ["magnitude", "wanda"]
    assert "stages.1.prune.sparsity" not in differences
    untested = get(client, f"{API}/compare", trial=["study/magnitude-0.9", "study/going"])["tests"][0]
    assert untested["p"] is None
    assert "it is running" in untested["reason"]


def test_one_trial_or_nine_cannot_be_compared(client: TestClient) -> None:
    for trials in (["study/going"], ["study/going"] * 2, [f"study/{one.name}" for one in study()[:9]]):
        answer = client.get(f"{API}/compare", params={"trial": trials})
        assert answer.status_code == 400
        assert "2 to 8 different trials" in answer.json()["error"]


def test_a_note_is_kept_and_made_harmless(own: TestClient, made: Root) -> None:
    text = "**worth** a [look](https://example.org) <script>alert(1)</script> [x](javascript:alert(1)) ![i](http://a/b.png)"
    html = own.post(f"{API}/trials/study/going/note", json={"text": text}).json()["html"]
    assert "<strong>worth</strong>" in html
    assert 'rel="noopener noreferrer nofollow"' in html
    for bad in ("<script", "<img", 'href="javascript'):
        assert bad not in html
    assert get(own, f"{API}/trials/study/going")["notes"]["text"] == text
    with Store.open(made, create=False) as store:
        assert store.note(store.result("study/going").id) == text
    own.post(f"{API}/trials/study/going/note", json={"text": ""})
    assert get(own, f"{API}/trials/study/going")["notes"] == {"text": "", "html": ""}
    answer = own.post(f"{API}/trials/study/going/note", json={"text": "x" * 20_001})
    assert answer.status_code == 400


def test_actions_say_what_they_did_or_why_not(own: TestClient, made: Root) -> None:
    for path, action, status, message in (
        ("/sweeps/study/actions", "stop", 409, "nothing runs under"),
        ("/trials/study/going/actions", "stop", 409, "nothing runs under"),
        ("/trials/study/later/actions", "stop", 409, "only a running trial can be stopped; later is waiting"),
        ("/trials/study/going/actions", "retry", 409, "can be retried; going is running"),
        ("/sweeps/study/actions", "explode", 400, "action"),
        ("/trials/study/too-big/actions", "retry", 200, "too-big is requeued"),
    ):
        answer = own.post(API + path, json={"action": action})
        assert answer.status_code == status, answer.text
        told = answer.json()
        assert message in (told["message"] if status == 200 else told["error"])
    with Store.open(made, create=False) as store:
        assert store.result("study/too-big").state == "waiting"


def test_a_running_coordinator_is_told(own: TestClient, made: Root) -> None:
    with coordinating(made, "study"):
        (sweep,) = get(own, f"{API}/sweeps")["sweeps"]
        assert sweep["running_now"] is True
        assert get(own, SWEEP)["coordinator"]["sweep"] == "study"
        for path, action in (
            ("/sweeps/study/actions", "stop"),
            ("/sweeps/study/actions", "kill"),
            ("/trials/study/going/actions", "stop"),
            ("/trials/study/too-big/actions", "retry"),
        ):
            assert own.post(API + path, json={"action": action}).json()["accepted"] is True
        assert take(made) == [
            Action("stop", "study"),
            Action("kill", "study"),
            Action("stop-trial", "study", "going"),
            Action("retry", "study", "too-big"),
        ]
        answer = own.post(f"{API}/sweeps/study/actions", json={"action": "resume"})
        assert answer.status_code == 409
        assert "has one already" in answer.json()["error"]


def test_the_queue_is_told_and_left(own: TestClient, made: Root) -> None:
    late, ticket = Ticket(made, "late"), Ticket(made, "study", 2)
    with coordinating(made, "other"):
        answer = get(own, f"{API}/sweeps")
        assert [(one["sweep"], one["priority"]) for one in answer["queue"]] == [("study", 2), ("late", 0)]
        assert answer["coordinator"]["sweep"] == "other"
        assert get(own, SWEEP)["place"] == 1
        refused = own.post(f"{API}/sweeps/study/actions", json={"action": "resume"})
        assert refused.status_code == 409
        assert "study is in the queue already" in refused.json()["error"]
        told = own.post(f"{API}/sweeps/study/actions", json={"action": "stop"}).json()
        assert told["message"] == "study has left the queue."
    assert not ticket.give_back()
    assert get(own, SWEEP)["place"] is None
    assert late.give_back()


def test_a_sweep_that_cannot_be_resumed_says_why(own: TestClient, made: Root) -> None:
    answer = own.post(f"{API}/sweeps/study/actions", json={"action": "resume"})
    log = (made.path / "control" / "study.log").read_text()
    if answer.status_code == 200:  # it was slow to find out
        assert "resumes in process" in answer.json()["message"]
    else:
        assert answer.status_code == 409
        assert log.strip().splitlines()[-1] in answer.json()["error"]


def test_pages_are_there_and_escape_what_they_show(client: TestClient) -> None:
    for path in ("/", "/sweeps/study", "/sweeps/study/tables", "/trials/study/going", "/api", "/login",
                 "/compare?trial=study/going&trial=study/%3Cscript%3E"):  # fmt: skip
        page = client.get(path)
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert "<script>" not in page.text
    missing = client.get("/sweeps/%3Cscript%3Ealert(1)")
    assert missing.status_code == 404
    assert "<script>alert" not in missing.text
    assert "&lt;script&gt;" in missing.text
    script = client.get("/static/plotly.min.js")
    assert script.status_code == 200
    assert len(script.content) > 1_000_000


def test_a_trial_that_changes_is_seen_changed(own: TestClient, made: Root) -> None:
    before = get(own, SWEEP)["slots"][0]["step"]
    grow(made, until=100)
    with Store.open(made, create=False) as store:
        running = store.result("study/going").id
        attempt = store.attempts(running)[-1]
        store.add_points(attempt.id, [Point(stage=1, step=150, epoch=1, name="loss", value=1.0, time=1e9)], offset=99)
    assert before == 58
    until(lambda: get(own, SWEEP)["slots"][0]["step"] == 150, "the new point")


def test_the_reference_lists_every_entry(client: TestClient) -> None:
    document = get(client, f"{API}/openapi.json")
    assert document["openapi"].startswith("3.1")
    from prunegpt.web.endpoint import ENDPOINTS

    described = {(path, method) for path, item in document["paths"].items() for method in item}
    assert described == {(API + entry.path, entry.method.lower()) for entry in ENDPOINTS}
    assert all(item["summary"] for path in document["paths"].values() for item in path.values())


def test_a_head_and_a_wrong_method_are_answered(client: TestClient) -> None:
    assert client.head(f"{API}/sweeps").status_code == 200
    assert client.post(f"{API}/sweeps", headers=HEADERS).status_code == 405

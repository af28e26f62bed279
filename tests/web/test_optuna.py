"""Optuna's own dashboard: started when it is asked for, on the loopback address, for its own pages only."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import optuna
import pytest
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import RDBStorage
from optuna_dashboard import get_note, save_note
from optuna_dashboard._note import get_note_from_system_attrs
from optuna_dashboard._storage import get_studies
from starlette.testclient import TestClient

from prunegpt.errors import LaunchError
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.web.app import create_app
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.optuna import OptunaDashboard
from prunegpt.web.optuna_view import Figures, View
from tests.web.browser.made import make_root
from tests.web.served import ORIGIN


def searched(path: Path) -> Root:
    """The study with a search over two of its trials, as the mirror writes it, and a third that we do not have."""
    search = {"space": {"sparsity": {"low": 0.0, "high": 1.0}}, "n_trials": 3}
    root = make_root(path, searches=[{"name": "sparsities", "search": search}])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = optuna.create_study(storage=f"sqlite:///{root.path}/optuna.db", study_name="study/sparsities")
    for name, sparsity, value in (("recovered", 0.9, 67.2), ("wanda-0.5", 0.5, 63.6), ("gone", 0.7, 70.0)):
        found.add_trial(
            optuna.create_trial(
                params={"sparsity": sparsity},
                distributions={"sparsity": optuna.distributions.FloatDistribution(0, 1)},
                value=value,
                user_attrs={"trial": name},
            )
        )
    return root


def status(url: str, headers: dict[str, str] | None = None, data: bytes | None = None) -> int:
    try:
        return int(urlopen(Request(url, headers=headers or {}, data=data), timeout=10).status)
    except HTTPError as error:
        return error.code


def test_without_a_search_there_is_none(tmp_path: Path, client: TestClient) -> None:
    with pytest.raises(LaunchError, match=r"shows searches, but .*optuna\.db is not there: none has run"):
        OptunaDashboard(Root(tmp_path)).url("study", ORIGIN)
    page = client.get("/sweeps/study/optuna")
    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")


def test_it_starts_when_asked_and_ends_with_the_server(tmp_path: Path) -> None:
    app = create_app(searched(tmp_path / "runs"), token=None, host="127.0.0.1", port=8000)
    with TestClient(app, base_url=ORIGIN, follow_redirects=False) as client:
        answer = client.get("/sweeps/study/optuna")
        assert answer.status_code == 303
        url = answer.headers["location"]
        parts = urlsplit(url)
        assert (parts.hostname, parts.path) == ("127.0.0.1", "/dashboard/studies/1")
        assert client.get("/sweeps/study/optuna").headers["location"] == url
        assert status(url) == 200
        studies = f"http://{parts.netloc}/api/studies"
        assert status(studies) == 200
        assert status(studies, {"Host": "evil.example"}) == 403
        assert status(studies, {"Origin": "http://evil.example", "Content-Type": "application/json"}, b"{}") == 403
    with pytest.raises(OSError, match="refused"):
        urlopen(url, timeout=5)


@pytest.fixture
def view(tmp_path: Path) -> Iterator[View]:
    root = searched(tmp_path / "runs")
    with Store.open(root) as store:
        store.set_note(store.result("study/wanda-0.5").id, "**Keep** this one")
    dashboard = Dashboard.open(root)
    yield View(f"sqlite:///{root.path}/optuna.db", dashboard, "http://127.0.0.1:8000/")
    dashboard.close()


def notes_one_by_one(view: View) -> list[str]:
    study = optuna.load_study(study_name="study/sparsities", storage=view)
    return [get_note(optuna.Trial(study, trial._trial_id)) for trial in study.trials]


def notes(view: View) -> list[str]:
    """Of the trials of the search, in both ways in which Optuna's dashboard reads them."""
    study = optuna.load_study(study_name="study/sparsities", storage=view)
    found = notes_one_by_one(view)
    (listed,) = get_studies(view)
    assert [get_note_from_system_attrs(listed.system_attrs, one._trial_id)["body"] for one in study.trials] == found
    return found


def test_trials_carry_our_link_what_came_of_them_and_our_note(view: View) -> None:
    recovered, wanda, gone = notes(view)
    assert recovered == (
        "[recovered in PruneGPT](http://127.0.0.1:8000/trials/study/recovered)\n\n"
        "finished, perplexity 67.2, sparsity 90.0 %"
    )
    assert wanda.startswith("[wanda-0.5 in PruneGPT](http://127.0.0.1:8000/trials/study/wanda-0.5)\n\n")
    assert wanda.endswith("\n\n**Keep** this one")
    assert gone == ""
    study = optuna.load_study(study_name="study/sparsities", storage=view)
    assert get_note(study) == "[study in PruneGPT](http://127.0.0.1:8000/sweeps/study)"
    assert RDBStorage(str(view.url)).get_study_system_attrs(1) == {}  # nothing was written


def test_a_note_written_in_optunas_dashboard_stands_before_ours(view: View) -> None:
    study = optuna.load_study(study_name="study/sparsities", storage=view)
    save_note(optuna.Trial(study, study.trials[0]._trial_id), "mine")
    recovered, wanda, _ = notes(view)
    assert recovered == "mine"
    assert "**Keep** this one" in wanda


def test_a_note_of_ours_that_changes_is_read_again(view: View) -> None:
    before = notes(view)[1]
    store = view.dashboard.source.store
    store.set_note(store.result("study/wanda-0.5").id, "Not this one")
    end = time.monotonic() + 20
    while notes_one_by_one(view)[1] == before and time.monotonic() < end:
        time.sleep(0.05)
    assert notes(view)[1].endswith("\n\nNot this one")


def test_figures_are_drawn_when_asked_for_and_uploads_kept(view: View, tmp_path: Path) -> None:
    store = Figures(tmp_path / "uploads", view.dashboard)
    attributes = view.get_study_system_attrs(1)
    told = [json.loads(value) for key, value in attributes.items() if key.startswith("dashboard:artifacts:")]
    assert [one["filename"] for one in told] == ["recovered.png", "wanda-0.5.png"]
    picture = store.open_reader(told[0]["artifact_id"]).read()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5000
    with pytest.raises(ArtifactNotFound, match="drawn from the trial"):
        store.remove(told[0]["artifact_id"])
    with pytest.raises(ArtifactNotFound, match="has gone"):
        store.open_reader("f19ffffff")
    store.write("abc", io.BytesIO(b"theirs"))
    assert store.open_reader("abc").read() == b"theirs"
    store.remove("abc")
    with pytest.raises(ArtifactNotFound):
        store.open_reader("abc")

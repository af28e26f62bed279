"""Optuna's own dashboard: started when it is asked for, on the loopback address, for its own pages only."""

from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import optuna
import pytest
from starlette.testclient import TestClient

from prunegpt.errors import LaunchError
from prunegpt.root import Root
from prunegpt.web.app import create_app
from prunegpt.web.optuna import OptunaDashboard
from tests.web.browser.made import make_root
from tests.web.served import ORIGIN


def searched(path: Path) -> Root:
    root = make_root(path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study(storage=f"sqlite:///{root.path}/optuna.db", study_name="study")
    return root


def status(url: str, headers: dict[str, str] | None = None, data: bytes | None = None) -> int:
    try:
        return int(urlopen(Request(url, headers=headers or {}, data=data), timeout=10).status)
    except HTTPError as error:
        return error.code


def test_without_a_search_there_is_none(tmp_path: Path, client: TestClient) -> None:
    with pytest.raises(LaunchError, match=r"shows searches, but .*optuna\.db is not there: none has run"):
        OptunaDashboard(Root(tmp_path)).url()
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
        assert (parts.hostname, parts.path) == ("127.0.0.1", "/dashboard/")
        assert client.get("/sweeps/study/optuna").headers["location"] == url
        assert status(url) == 200
        studies = f"http://{parts.netloc}/api/studies"
        assert status(studies) == 200
        assert status(studies, {"Host": "evil.example"}) == 403
        assert status(studies, {"Origin": "http://evil.example", "Content-Type": "application/json"}, b"{}") == 403
    with pytest.raises(OSError, match="refused"):
        urlopen(url, timeout=5)

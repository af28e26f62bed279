"""The W&B endpoint behind the dashboard's door."""

import base64
from pathlib import Path

from starlette.testclient import TestClient

from prunegpt.access import new_token
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.tracking.foreign import Keeper
from prunegpt.tracking.run_path import RunPath
from prunegpt.web.app import create_app
from tests.support.served import ORIGIN

VIEWER = {"query": "query Viewer { viewer { id } }", "variables": {}}


def test_it_answers_on_loopback_without_our_header_but_not_to_other_sites(own: TestClient) -> None:
    assert own.post("/graphql", json=VIEWER, headers={"X-PruneGPT": ""}).json()["data"]["viewer"]
    answer = own.post("/graphql", json=VIEWER, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403


def test_the_api_key_is_the_token(made: Root) -> None:
    token = new_token()
    with TestClient(create_app(made, token=token, host="0.0.0.0", port=8000), base_url=ORIGIN) as client:
        assert client.post("/graphql", json=VIEWER).status_code == 401
        for key, status in ((token, 200), (token[::-1], 401)):
            secret = base64.b64encode(f"api:{key}".encode()).decode()
            assert (
                client.post("/graphql", json=VIEWER, headers={"authorization": f"Basic {secret}"}).status_code == status
            )


def test_a_page_that_a_run_has_uploaded_is_shown_in_an_origin_of_its_own(tmp_path: Path) -> None:
    root = Root(tmp_path)
    with Store.open(root) as store:
        run = Keeper(root, store, RunPath("local", "p", "run1"))
        for name in ("page.html", "page.txt"):
            path = run.folder / "files" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("<script>parent.document</script>")
    app = create_app(root, token=new_token(), open_to_read=True, host="127.0.0.1", port=8000)
    with TestClient(app, base_url=ORIGIN) as client:
        page, text = (
            client.get("/api/v1/trials/wandb-p/run1/file", params={"name": name}) for name in ("page.html", "page.txt")
        )
        policy = page.headers["content-security-policy"].split("; ")
        assert "sandbox allow-scripts" in policy, "scripts that reach nothing: no allow-same-origin"
        assert "default-src 'none'" in policy
        assert not any("http" in rule or "connect" in rule for rule in policy)
        assert "script-src 'self'" in text.headers["content-security-policy"]
        assert text.headers["content-disposition"].startswith("attachment")

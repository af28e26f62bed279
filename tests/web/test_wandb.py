"""The W&B endpoint behind the dashboard's door."""

import base64

from starlette.testclient import TestClient

from prunegpt.access import new_token
from prunegpt.root import Root
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

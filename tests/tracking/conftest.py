"""A client of the W&B endpoint of an empty root."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from prunegpt.root import Root
from tests.tracking.endpoint_client import Client


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    client = Client(Root(tmp_path / "runs"))
    yield client
    for endpoint in client.endpoints:
        endpoint.close()

"""Real schedulers, started once for all tests that need them."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.launch import slurm_cluster as slurm


@pytest.fixture(scope="session")
def running_slurm() -> Iterator[slurm.Cluster]:
    if reason := slurm.missing():
        pytest.skip(f"Slurm cannot be started here: {reason}")
    pytest.importorskip("submitit", reason="submitit is not installed")
    with slurm.cluster() as cluster:
        yield cluster


@pytest.fixture
def slurm_cluster(running_slurm: slurm.Cluster, monkeypatch: pytest.MonkeyPatch) -> slurm.Cluster:
    """A Slurm of one node, which Slurm's commands find."""
    for name, value in running_slurm.environment.items():
        monkeypatch.setenv(name, value)
    return running_slurm


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Ray cluster whose head has four processors; this process is connected to it."""
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    from prunegpt.launch.ray import RayLauncher
    from prunegpt.root import Root
    from prunegpt.spec.execution import RayOptions

    head = {"num_cpus": 4, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    connection = RayLauncher(Root(tmp_path_factory.mktemp("ray")), 1, options=RayOptions(address=cluster.address))
    yield cluster
    connection.close()
    cluster.shutdown()

"""From a spec to a launcher: what is refused, and what a local one is given."""

import builtins
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prunegpt.errors import LaunchError, MissingPackageError, PruneGPTError, UnknownPartError
from prunegpt.launch.choose import check_launcher, open_launcher, together
from prunegpt.launch.job import TRIAL
from prunegpt.launch.local import LocalLauncher
from prunegpt.registry import LAUNCHERS
from prunegpt.root import Root
from prunegpt.spec.execution import OPTIONS, LauncherSpec, RayOptions, SlurmOptions


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the machine have so many GPUs."""

    def have(count: int) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))

    have(0)
    return have


def opened(tmp_path: Path, told: int | None = None, **fields: Any) -> LocalLauncher:
    found = open_launcher(LauncherSpec(**fields), Root(tmp_path), slots=told)
    assert isinstance(found, LocalLauncher)
    return found


def visible(launcher: LocalLauncher) -> list[str | None]:
    return [slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in launcher._slots]


def test_every_built_in_launcher_has_its_options_described() -> None:
    assert set(OPTIONS) == set(LAUNCHERS.names())
    for part in OPTIONS.values():
        assert all(field.description for field in part.model_fields.values())


def test_a_word_names_a_launcher() -> None:
    assert LauncherSpec.model_validate("slurm") == LauncherSpec(kind="slurm")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "slrum"}, "unknown launcher 'slrum'. Did you mean 'slurm'"),
        (
            {"kind": "slurm", "options": {"partitoin": "a"}},
            "unknown option of launcher slurm 'partitoin'. Did you mean 'partition'",
        ),
        ({"kind": "slurm", "options": {"time": "10s"}}, "option 'time' of launcher slurm: .*60, got '10s'"),
        ({"kind": "slurm", "options": {"time": "soon"}}, 'like "30m", "2h", "1d", got \'soon\''),
        ({"kind": "slurm", "options": {"mem": "lots"}}, "option 'mem' of launcher slurm"),
        ({"kind": "ray", "options": {"cpus": 0}}, "option 'cpus' of launcher ray: .*greater than 0, got 0"),
        ({"kind": "ray", "options": {"partition": "a"}}, "unknown option of launcher ray 'partition'. Valid: "),
        ({"kind": "local", "options": {"cpus": 1}}, "unknown option of launcher local 'cpus'. Valid: threads"),
        ({"gpus": 2, "processes": 3}, "processes must be at most gpus, .*got 3 processes and 2 gpus"),
    ],
)
def test_wrong_options_are_refused_when_the_spec_is_read(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LauncherSpec(**fields)


def test_all_wrong_options_are_told_at_once() -> None:
    with pytest.raises(ValidationError, match=r"'qso'.*'cpus'.*'mem'"):
        LauncherSpec(kind="slurm", options={"cpus": -1, "mem": "much", "qso": "low"})


def test_options_are_read() -> None:
    spec = LauncherSpec(kind="slurm", gpus=4, options={"time": "4h", "setup": ["a", "b"], "extra": {"nice": 5}})
    options = spec.parsed()
    assert isinstance(options, SlurmOptions)
    assert (options.time, options.setup, options.extra) == (14400, ("a", "b"), {"nice": 5})
    assert spec.ranks == 4
    assert LauncherSpec(gpus=1).ranks == LauncherSpec().ranks == LauncherSpec(gpus=0).ranks == 1
    assert LauncherSpec(processes=3).ranks == 3
    assert LauncherSpec(kind="ray", options={"resources": {"a": 1}}).parsed() == RayOptions(resources={"a": 1})


def test_another_launcher_drops_the_options_of_the_first() -> None:
    spec = LauncherSpec(kind="slurm", gpus=2, slots=9, options={"partition": "a"})
    assert spec.of("slurm") is spec
    assert spec.of("local") == LauncherSpec(gpus=2)


def test_options_are_checked_again_when_a_spec_was_changed(tmp_path: Path) -> None:
    changed = LauncherSpec(kind="slurm", options={"partition": "a"}).model_copy(update={"kind": "local"})
    with pytest.raises(LaunchError, match=r"launcher.options cannot be used: unknown option of launcher local"):
        open_launcher(changed, Root(tmp_path))


def test_a_local_launcher_has_a_slot_for_every_gpu(tmp_path: Path, devices: Callable[[int], None]) -> None:
    assert opened(tmp_path).slots == 1
    devices(3)
    assert visible(opened(tmp_path)) == ["0", "1", "2"]
    assert visible(opened(tmp_path, slots_per_gpu=2)) == ["0", "1", "2", "0", "1", "2"]
    assert visible(opened(tmp_path, slots=1)) == ["0"]  # one process uses one
    assert visible(opened(tmp_path, 2, slots=3)) == ["0", "1"]
    assert visible(opened(tmp_path, gpus=0, slots=2)) == ["", ""]


def test_a_trial_on_several_gpus_gets_them_for_itself(tmp_path: Path, devices: Callable[[int], None]) -> None:
    devices(5)
    launcher = opened(tmp_path, gpus=2)
    assert visible(launcher) == ["0,2", "1,3"]
    assert launcher._command[-2:] == ("--processes", "2")
    with pytest.raises(LaunchError, match=r"3 slots of 2 GPUs need 6 and there are 5. Set slots to at most 2"):
        opened(tmp_path, gpus=2, slots=3)
    with pytest.raises(LaunchError, match=r"asks for 6 for each trial and there are 5. Set launcher.gpus to at most 5"):
        opened(tmp_path, gpus=6)


def test_processes_are_told_to_the_worker(tmp_path: Path, devices: Callable[[int], None]) -> None:
    assert opened(tmp_path, processes=2)._command[-2:] == ("--processes", "2")
    assert together(TRIAL, 1) == TRIAL


def test_no_slots_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="at least 1 slot, got 0"):
        open_launcher(LauncherSpec(), Root(tmp_path), slots=0)


@pytest.mark.parametrize(("kind", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_told_with_the_way_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, package: str
) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **more: Any) -> Any:
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for name in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    for opens in (check_launcher, open_launcher):  # before the queue, and when the turn has come
        with pytest.raises(MissingPackageError, match=rf"{kind} needs {package}.*pip install 'prunegpt\[{kind}\]'"):
            opens(LauncherSpec(kind=kind), Root(tmp_path))


def test_a_machine_without_slurm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    for opens in (check_launcher, open_launcher):
        with pytest.raises(LaunchError, match="the launcher slurm cannot submit jobs here"):
            opens(LauncherSpec(kind="slurm"), Root(tmp_path))


def test_a_cluster_of_ray_that_nobody_serves_is_told_before_the_queue(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    spec = LauncherSpec(kind="ray", options={"address": "127.0.0.1:1"})
    with pytest.raises(LaunchError, match=r"the launcher ray found no cluster at '127\.0\.0\.1:1'"):
        check_launcher(spec, Root(tmp_path))


def test_a_plug_in_is_called_with_root_slots_and_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr(LAUNCHERS, "_plugins", {"moon": []})
    with pytest.raises(UnknownPartError):
        open_launcher(LauncherSpec.model_construct(kind="mars"), Root(tmp_path))
    monkeypatch.setattr(LAUNCHERS, "load", lambda name: lambda *given: made.append(given) or "the launcher")
    spec = LauncherSpec(kind="moon", options={"anything": "goes"})
    assert open_launcher(spec, Root(tmp_path), slots=4) == "the launcher"
    assert made == [(Root(tmp_path), 4, spec)]
    assert issubclass(MissingPackageError, PruneGPTError)

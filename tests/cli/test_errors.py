"""What stops a command is told in a sentence with a way out; a defect is shown whole."""

import errno
import os
import sys
from pathlib import Path

import pytest

from prunegpt import cli
from prunegpt.errors import PruneGPTError, counted, in_bytes
from tests.support.study import make_root


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PruneGPTError("a rule, a value, a hint."), "error: a rule, a value, a hint."),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.json"), "No space left on device: 'x.json'. Free some"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "Read-only file system. Use another --root"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "Permission denied. Use another --root"),
    ],
)
def test_an_error_with_a_way_out_is_a_sentence(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["prunegpt"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 kB"), (999, "1 kB"), (37.36e6, "37 MB"), (999_499, "999 kB"), (999_500, "1.0 MB"), (9.94e6, "9.9 MB"),
        (9.96e6, "10 MB"), (1.234e9, "1.2 GB"), (5e13, "50 TB"), (5e16, "50000 TB"),
    ],
)  # fmt: skip
def test_sizes_are_written_as_people_read_them(size: float, text: str) -> None:
    assert in_bytes(size) == text


def test_one_thing_is_one_thing() -> None:
    assert [counted(number, "trial") for number in (0, 1, 2000)] == ["0 trials", "1 trial", "2,000 trials"]


def test_the_name_of_a_sweep_alone_lists_its_trials(tmp_path: Path) -> None:
    """Where a model is wanted, and no model of the hub is here by that name."""
    from prunegpt.cli.measure import open_model

    root = make_root(tmp_path, windows=False)
    with pytest.raises(PruneGPTError, match=r"named SWEEP/TRIAL, got study. Its trials: study/zero-shot, "):
        open_model("study", root, "cpu")

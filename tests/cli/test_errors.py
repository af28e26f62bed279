"""What stops a command is told in a sentence with a way out; a defect is shown whole."""

import errno
import os
import sys

import pytest

from prunegpt import cli
from prunegpt.errors import PruneGPTError


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

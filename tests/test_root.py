"""Files and folders appear whole or not at all."""

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from prunegpt.root import DEFAULT_ROOT, ROOT_VARIABLE, Root, publishing, write_json, write_text


class Crash(BaseException):
    """What ends a block, as KeyboardInterrupt does."""


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# -- finding ---------------------------------------------------------------------------------------------------------


def test_a_root_is_the_one_given_or_the_variables_or_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    assert Root.find().path == tmp_path / DEFAULT_ROOT
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "variable"))
    assert Root.find().path == tmp_path / "variable"
    assert Root.find("given").path == tmp_path / "given"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Root.find("~/there").path == tmp_path / "there"
    assert not list(tmp_path.iterdir())  # nothing is made by asking


def test_everything_lies_below_the_root_at_a_place_of_its_own(tmp_path: Path) -> None:
    root = Root(tmp_path)
    places = [
        root.database,
        root.stages,
        root.data,
        root.statistics,
        root.teachers,
        root.work("k"),
        root.stage("k"),
        root.evaluation("k", "e"),
        root.trial("s", "t"),
        root.attempt("s", "t", 1),
        root.attempt("s", "t", 2),
    ]
    assert len(set(places)) == len(places)
    assert all(place.is_relative_to(tmp_path) and place != tmp_path for place in places)


def test_a_stage_is_published_when_its_record_is_there(tmp_path: Path) -> None:
    root = Root(tmp_path)
    assert not root.is_published("k")
    root.stage("k").mkdir(parents=True)
    assert not root.is_published("k")
    write_text(root.stage("k") / "stage.json", "{}")
    assert root.is_published("k")


# -- files -----------------------------------------------------------------------------------------------------------


def test_text_is_written_as_it_is_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "ä\n")
    write_text(path, "b")
    assert path.read_bytes() == b"b"
    assert tree(tmp_path) == ["new", "new/folder", "new/folder/a.txt"]


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_text(path, "after")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "before"
    assert tree(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o755, 0o400])
def test_a_file_that_is_rewritten_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "README.md"
    path.write_text("before")
    path.chmod(mode)
    write_text(path, "after")
    assert path.read_text() == "after"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_folder_takes_the_place_of_another_when_it_is_whole(tmp_path: Path) -> None:
    place = tmp_path / "model"
    with publishing(place, replace=True) as folder:
        (folder / "old").write_text("1")
    with pytest.raises(Crash), publishing(place, replace=True) as folder:
        raise Crash
    assert tree(tmp_path) == ["model", "model/old"]
    with publishing(place, replace=True) as folder:
        (folder / "new").write_text("2")
        assert (place / "old").exists()
    assert tree(tmp_path) == ["model", "model/new"]


def test_many_writers_of_one_file_leave_one_whole_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    texts = [character * 20_000 for character in "abcdefgh"]
    writers = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in texts
    assert tree(tmp_path) == ["a.txt"]


def test_json_is_written_sorted_and_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None, "ä"], "a": 0.1})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": 0.1, "b": [1, None, "ä"]}
    assert text.index('"a"') < text.index('"b"')
    assert "ä" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_number_that_is_not_finite(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": [value]})
    assert tree(tmp_path) == []


# -- folders ---------------------------------------------------------------------------------------------------------


def publish(destination: Path, text: str) -> None:
    with publishing(destination) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(text)
        (folder / "stage.json").write_text(text)


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    destination = tmp_path / "stages" / "key"
    with publishing(destination) as folder:
        (folder / "a").write_text("a")
        assert not destination.exists()
        assert folder.parent == destination.parent  # a rename within one file system
    assert tree(tmp_path) == ["stages", "stages/key", "stages/key/a"]


@pytest.mark.parametrize("error", [ValueError, Crash, KeyboardInterrupt])
def test_a_crash_in_the_block_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    def crash() -> None:
        with publishing(tmp_path / "key") as folder:
            (folder / "half").mkdir()
            (folder / "half" / "a").write_text("a")
            raise error

    with pytest.raises(error):
        crash()
    assert tree(tmp_path) == []


def test_the_second_to_publish_finds_it_done(tmp_path: Path) -> None:
    publish(tmp_path / "key", "first")
    publish(tmp_path / "key", "second")
    assert (tmp_path / "key" / "model" / "weights").read_text() == "first"
    assert tree(tmp_path) == ["key", "key/model", "key/model/weights", "key/stage.json"]


def test_of_many_publishers_at_once_one_is_found_whole(tmp_path: Path) -> None:
    destination = tmp_path / "key"
    ready = threading.Barrier(4)
    failed: list[BaseException] = []

    def work(text: str) -> None:
        try:
            ready.wait()
            publish(destination, text)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(text,)) for text in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    texts = {(destination / name).read_text() for name in ("stage.json", "model/weights")}
    assert len(texts) == 1
    assert tree(tmp_path) == ["key", "key/model", "key/model/weights", "key/stage.json"]


def test_a_destination_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        publish(tmp_path / "file" / "key", "a")


def test_a_published_folder_is_as_readable_as_any_other(tmp_path: Path) -> None:
    publish(tmp_path / "key", "a")
    (tmp_path / "plain").mkdir()
    modes: list[Any] = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("key", "plain")]
    assert modes[0] == modes[1]


def test_what_a_library_writes_for_its_owner_alone_is_as_readable_as_any_file(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with publishing(tmp_path / "model") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "model.safetensors").touch(mode=0o600)
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("usual", "model/inner/model.safetensors")]
    assert modes[0] == modes[1]

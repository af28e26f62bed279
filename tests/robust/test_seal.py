"""A published folder knows its files: what was cut, lost or edited since is not taken for what was published."""

from pathlib import Path

import pytest

from prunegpt.root import SEAL, Damage, Root, damage, publishing, read_sealed, seal, sealed, set_aside


def publish(folder: Path, text: str = "weights") -> None:
    with publishing(folder) as temporary:
        (temporary / "model").mkdir()
        (temporary / "model" / "weights").write_text(text)
        (temporary / "stage.json").write_text("{}")
        seal(temporary)


def test_what_is_sealed_is_whole(tmp_path: Path) -> None:
    publish(tmp_path / "key")
    assert set(sealed(tmp_path / "key") or ()) == {"model/weights", "stage.json"}
    assert damage(tmp_path / "key", deep=True) == []
    (tmp_path / "key" / "evaluations").mkdir()  # what comes later is not part of it
    (tmp_path / "key" / "evaluations" / "more").write_text("x")
    assert damage(tmp_path / "key", deep=True) == []


@pytest.mark.parametrize("times", [1, 1 << 16])  # a small file is always compared by content, a large one if asked
@pytest.mark.parametrize(
    ("text", "quick", "deep"), [("weigh", "cut", "cut"), ("weights!", "changed", "changed"), ("wEights", "", "changed")]
)
def test_what_was_changed_since_is_told(tmp_path: Path, text: str, quick: str, deep: str, times: int) -> None:
    publish(tmp_path / "key", "weights" * times)
    (tmp_path / "key" / "model" / "weights").write_text(text * times)
    quick = deep if times == 1 else quick
    for told, found in ((quick, damage(tmp_path / "key")), (deep, damage(tmp_path / "key", deep=True))):
        assert found == ([Damage("model/weights", told)] if told else [])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stage.json": 3}', '{"stage.json": ["x", "y"]}', "null"])
def test_a_seal_that_cannot_be_read_is_damage(tmp_path: Path, content: str) -> None:
    publish(tmp_path / "key")
    (tmp_path / "key" / SEAL).write_text(content)
    assert damage(tmp_path / "key") == [Damage(SEAL, "unreadable")]


def test_a_damaged_stage_is_not_published_and_gives_way_to_a_new_one(tmp_path: Path) -> None:
    root = Root(tmp_path)
    publish(root.stage("key"))
    assert root.is_published("key")
    (root.stage("key") / "model" / "weights").unlink()
    assert not root.is_published("key")
    publish(root.stage("key"), "new ones")
    assert root.is_published("key")
    assert (root.stage("key") / "model" / "weights").read_text() == "new ones"
    (aside,) = root.stages.glob(".key.*.damaged")  # kept for whoever wants to look
    assert (aside / "stage.json").exists()


@pytest.mark.parametrize(
    ("name", "content"), [("windows.npy", ""), ("windows.npy", "wIndows"), ("evaluation.json", "[]")]
)
def test_a_damaged_evaluation_is_measured_again(tmp_path: Path, name: str, content: str) -> None:
    root = Root(tmp_path)
    with publishing(root.evaluation("key", "e")) as folder:
        (folder / "evaluation.json").write_text("{}")
        (folder / "windows.npy").write_text("windows")
        seal(folder)
    assert root.is_measured("key", "e")
    (root.evaluation("key", "e") / name).write_text(content)
    assert not root.is_measured("key", "e")


def test_a_record_that_was_edited_is_not_read(tmp_path: Path) -> None:
    with publishing(tmp_path / "e") as folder:
        (folder / "evaluation.json").write_text('{"perplexity": 409.84}')
        seal(folder)
    assert read_sealed(tmp_path / "e" / "evaluation.json") == '{"perplexity": 409.84}'
    (tmp_path / "e" / "evaluation.json").write_text('{"perplexity": 109.84}')
    with pytest.raises(ValueError, match="was changed after it was published"):
        read_sealed(tmp_path / "e" / "evaluation.json")


def test_folders_of_earlier_versions_have_no_seal_and_count(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.stage("key").mkdir(parents=True)
    (root.stage("key") / "stage.json").write_text("{}")
    assert sealed(root.stage("key")) is None
    assert root.is_published("key")


def test_what_is_set_aside_is_found_by_nobody(tmp_path: Path) -> None:
    publish(tmp_path / "key")
    publish(tmp_path / "other")
    aside = {set_aside(tmp_path / "key"), set_aside(tmp_path / "other")}
    assert all(path.name.startswith(".") and path.name.endswith(".damaged") for path in aside)
    assert set(tmp_path.iterdir()) == aside


def test_a_stage_or_an_evaluation_in_the_place_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    root = Root(tmp_path)
    for key in ("one", "two"):
        with publishing(root.stage(key)) as folder:
            (folder / "stage.json").write_text(f'{{"key": "{key}"}}')
            seal(folder)
        with publishing(root.evaluation(key, "e")) as folder:
            (folder / "evaluation.json").write_text(f'{{"key": "e", "stage": "{key}"}}')
            seal(folder)
        assert root.is_published(key)
        assert root.is_measured(key, "e")
    (root.stage("one")).rename(root.stage("three"))
    (root.stage("two") / "evaluations" / "e").rename(root.stage("two") / "evaluations" / "f")
    assert not root.is_published("three")
    assert not root.is_measured("three", "e")  # of stage one
    assert root.is_published("two")
    assert not root.is_measured("two", "f")
    assert damage(root.stage("three")) == [Damage("stage.json", "misplaced")]

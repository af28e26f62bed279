from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunegpt.errors import ReportError
from prunegpt.report.archive import read_archive
from prunegpt.report.declared import tables_of
from prunegpt.report.regions import find_regions, replace_regions, update_file
from prunegpt.report.render import markdown

CHECKOUT = Path(__file__).resolve().parents[2]

README = """# Title

<!-- prunegpt:table wikitext-2 -->
old
<!-- /prunegpt:table -->

Between.

  <!--prunegpt:table layers-->
  <!-- /prunegpt:table -->
end"""


def test_only_the_region_is_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(README)
    assert update_file(path, {"wikitext-2": "| a |\n| --- |\n"})
    expected = README.replace("\nold\n", "\n\n| a |\n| --- |\n\n")
    assert path.read_text() == expected
    assert not update_file(path, {"wikitext-2": "| a |\n| --- |\n"})
    assert list(tmp_path.iterdir()) == [path]


@given(
    before=st.text(alphabet="ab #|<!->\n`\t", max_size=40),
    after=st.text(alphabet="ab #|<!->\n\t", max_size=40),
    old=st.text(alphabet="ab|\n", max_size=20),
)
def test_everything_outside_is_kept(before: str, after: str, old: str) -> None:
    text = f"{before}\n<!-- prunegpt:table x -->\n{old}\n<!-- /prunegpt:table -->\n{after}"
    try:
        find_regions(text)
        new = replace_regions(text, {"x": "| new |"})
    except ReportError:
        assert "```" in before  # an open fence makes the markers text
        return
    opened, closed = "<!-- prunegpt:table x -->\n", "<!-- /prunegpt:table -->"
    assert new == f"{before}\n{opened}\n| new |\n\n{closed}\n{after}"
    assert replace_regions(new, {"x": "| new |"}) == new


def test_line_endings_stay(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(README.replace("\n", "\r\n").encode())
    update_file(path, {"layers": "| a |"})
    content = path.read_bytes()
    assert content.count(b"\n") == content.count(b"\r\n")
    assert b"| a |\r\n" in content


def test_markers_in_fenced_code_are_text(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    fenced = "```\n<!-- prunegpt:table x -->\n<!-- /prunegpt:table -->\n```\n"
    path.write_text(f"~~~~\n```\n~~~~\n{fenced}<!-- prunegpt:table x -->\n<!-- /prunegpt:table -->\n")
    update_file(path, {"x": "| a |"})
    assert fenced in path.read_text()
    assert path.read_text().count("| a |") == 1


def test_every_region_of_a_name_is_written() -> None:
    twice = "<!-- prunegpt:table x -->\n<!-- /prunegpt:table -->\n" * 2
    assert replace_regions(twice, {"x": "| a |"}).count("| a |") == 2


def test_a_region_may_hold_one_table_of_a_sweep_without_its_title() -> None:
    archive = read_archive(CHECKOUT / "sweeps" / "results" / "quickstart")
    first, second = tables_of(archive)
    held = markdown.regions("quickstart", [first, second])
    assert list(held) == ["quickstart", f"quickstart/{first.name}", f"quickstart/{second.name}"]
    region = f"<!-- prunegpt:table quickstart/{second.name} -->\n<!-- /prunegpt:table -->\n"
    text = replace_regions(region, held)
    assert "| Layer Pruned |" in text
    assert "###" not in text
    assert first.title not in text


def test_a_missing_marker_says_how_to_add_it(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(README)
    with pytest.raises(ReportError) as raised:
        update_file(path, {"wikitext-3": "| a |"})
    message = str(raised.value)
    assert f"{path} has none for 'wikitext-3'. It has wikitext-2, layers." in message
    assert "<!-- prunegpt:table wikitext-3 -->\n<!-- /prunegpt:table -->" in message
    assert replace_regions(f"# A\n\n{message[message.index('<!--') :]}\n", {"wikitext-3": "| a |"}).count("| a |") == 1
    assert path.read_text() == README


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- prunegpt:table x -->\n", "must be closed; 'x' in the file line 1 is not"),
        ("<!-- /prunegpt:table -->\n", "line 1 closes none"),
        ("<!-- prunegpt:table x -->\n<!-- prunegpt:table y -->\n", "line 2 opens 'y' inside 'x'"),
    ],
)
def test_unpaired_markers_are_refused(text: str, message: str) -> None:
    with pytest.raises(ReportError, match=message):
        find_regions(text)


def test_a_table_cannot_smuggle_a_marker_in() -> None:
    with pytest.raises(ReportError, match="must not hold a marker line"):
        replace_regions(README, {"layers": "<!-- /prunegpt:table -->"})


def test_the_file_must_be_there_and_text(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="does not exist"):
        update_file(tmp_path / "README.md", {"x": ""})
    (tmp_path / "bad.md").write_bytes(b"\xff\xfe")
    with pytest.raises(ReportError, match="is not UTF-8 text"):
        update_file(tmp_path / "bad.md", {"x": ""})


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.md").write_text(README)
    (tmp_path / "README.md").symlink_to(tmp_path / "real.md")
    update_file(tmp_path / "README.md", {"layers": "| a |"})
    assert (tmp_path / "README.md").is_symlink()
    assert "| a |" in (tmp_path / "real.md").read_text()

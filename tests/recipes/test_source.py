from pathlib import Path

import pytest

from prunegpt.recipes.source import Map, RecipeError, Seq, front_matter, is_valid, parse, read_text, suggest, tags

FIXTURES = Path(__file__).parent / "fixtures"


def test_tags_and_lines_are_kept() -> None:
    tree = parse("modifiers:\n  - !pytorch.GMPruningModifier\n    start_epoch: 1\n  - !Bare\n")
    assert tree == {"modifiers": [{"start_epoch": 1}, []]}
    assert list(tags(tree)) == ["pytorch.GMPruningModifier", "Bare"]
    assert isinstance(tree, Map)
    items = tree["modifiers"]
    assert isinstance(items, Seq)
    assert [item.line for item in items] == [2, 4]


def test_values_are_plain() -> None:
    text = "{a: 1e-7, b: yes, c: 'true', d: true, e: ~, f: 0x10, g: -1_000, h: .5, i: 2020-01-01, j: !!str 3, k: 010}"
    assert parse(text) == {
        "a": 1e-7,
        "b": "yes",
        "c": "true",
        "d": True,
        "e": None,
        "f": 16,
        "g": -1000,
        "h": 0.5,
        "i": "2020-01-01",
        "j": "3",
        "k": 10,
    }


def test_json_is_yaml() -> None:
    assert parse('{"train_stage": {"x_modifiers": {"A": {"n": [1, 2.5]}}}}') == {
        "train_stage": {"x_modifiers": {"A": {"n": [1, 2.5]}}}
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system [ls]", "line 1: a tag must name a modifier.*Nothing is built from it"),
        ("a: !!python/name:os.system", "a tag must name a modifier"),
        ("a: !!binary aGk=", "a tag must name a modifier"),
        ("a: !<tag:x> 1", "a tag must name a modifier"),
        ("a: 1\nb: 2\na: 3", "line 3: keys must differ; 'a' is there twice. Remove one."),
        ("? [1]\n: 2", "a key must be a plain value"),
        ("a: !!int x", "a value must be valid YAML of its kind; 'x' is not"),
        ("a: 99999999999999999999", "a whole number may have 63 bits"),
        ('a: "\\ud800"', "half a surrogate pair"),
        ('"\\ud800": 1', "half a surrogate pair"),
        ("a: &a [*a]", "may be nested 50 levels deep"),
        ("[" * 3000, "nest"),
        ("a: [", "must be valid YAML"),
        ("a: *b", "must be valid YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", "must be valid YAML: but found another document"),
        ("\x00", "must be valid YAML"),
        ("", "the file holds nothing"),
        ("# only a comment", "the file holds nothing"),
        ("<<: 3", "<< must take a mapping"),
        ("zoo:nlp/x", "which no longer exists"),
        ("a: '" + "x" * 1_200_000 + "'", "may have 1000000 bytes"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(text)


def test_aliases_do_not_multiply() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(RecipeError, match="may hold 200000 values"):
        parse("\n".join(lines))


def test_merge_keys() -> None:
    assert parse("base: &b {x: 1, y: 2}\nuse: {<<: *b, y: 3}\n")["use"] == {"x": 1, "y": 3}


def test_an_override_reaches_the_aliases_of_an_anchor() -> None:
    text = "n: &n 0.8\nlist: &l [a]\nmodifiers:\n  - !X {final: *n, params: *l}\n"
    assert parse(text, overrides={"n": 0.5, "list": ["b", "c"]})["modifiers"] == [{"final": 0.5, "params": ["b", "c"]}]


def test_an_override_reaches_the_variable_in_every_stage() -> None:
    text = "n: 1\na_stage: {n: 2, m_modifiers: {X: {n: 5}}}\n"
    assert parse(text, overrides={"n": 9}) == {"n": 9, "a_stage": {"n": 9, "m_modifiers": {"X": {"n": 5}}}}


def test_an_override_of_nothing_lists_the_variables() -> None:
    with pytest.raises(RecipeError, match=r"'sparsty' is none\. There are: sparsity, epochs"):
        parse("sparsity: 1\nepochs: 2\nmodifiers: []", overrides={"sparsty": 0.5})


def test_front_matter_keeps_line_numbers() -> None:
    text = (FIXTURES / "anchors.md").read_text()
    tree = parse(text, "anchors.md")
    assert isinstance(tree, Map)
    assert tree.lines["num_epochs"] == text.split("\n").index("num_epochs: &num_epochs 30") + 1


def test_front_matter_between_pluses() -> None:
    assert front_matter("+++\na: 1\n+++\n", required=True, source="x.md").strip() == "a: 1"
    assert front_matter("---\na: 1\n", required=False, source="x.yaml") == "---\na: 1\n"
    with pytest.raises(RecipeError, match="must hold YAML between two lines of ---"):
        parse("# a card", "x.md")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.yaml", None, "must be a readable file"),
        ("latin.yaml", "a: é".encode("latin-1"), "must be UTF-8; byte 3 is not"),
        ("large.yaml", b"#" * 1_200_000, "may have 1000000 bytes; it has 1200000"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        read_text(tmp_path / name)


def test_a_stub_is_no_file() -> None:
    with pytest.raises(RecipeError, match=r"SparseZoo, which no longer exists\. Give the path of a copy"):
        read_text(Path("zoo:nlp/masked_language_modeling/bert"))


def test_an_indented_modifier_comes_with_its_fix() -> None:
    text = (FIXTURES / "90sparse-broken.yaml").read_text()
    assert not is_valid(text)
    with pytest.raises(RecipeError) as raised:
        parse(text, "90sparse.yaml")
    message = str(raised.value)
    assert raised.value.problems[0].line == text.split("\n").index("        - !GMPruningModifier") + 1
    assert "`- !GMPruningModifier` begins after 8 spaces and others after 4" in message
    assert "it is nested in !EpochRangeModifier. Remove 4 spaces before its dash" in message


def test_the_suggested_fix_parses_and_changes_one_line() -> None:
    text = (FIXTURES / "90sparse-broken.yaml").read_text()
    fixed, problem = suggest(text)
    assert problem is not None
    changed = [(old, new) for old, new in zip(text.split("\n"), fixed.split("\n"), strict=True) if old != new]
    assert changed == [("        - !GMPruningModifier", "    - !GMPruningModifier")]
    assert len(parse(fixed)["modifiers"]) == 3


def test_a_first_item_that_is_indented_too_far() -> None:
    text = "modifiers:\n      - !A\n        x: 1\n    - !B\n        y: 2\n"
    with pytest.raises(
        RecipeError, match=r"line 2: .*`- !A` begins after 6 spaces and others after 4\. Remove 2 spaces"
    ):
        parse(text)


def test_other_broken_yaml_gets_no_suggestion() -> None:
    with pytest.raises(RecipeError, match="must be valid YAML"):
        parse("modifiers:\n  - !A\n    x: [1\n  - !B\n")

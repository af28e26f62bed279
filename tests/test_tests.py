"""What holds of the tests themselves: where shared code lies, and that no test waits for a clock or measures by it."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PROGRAMS = {"bench"}  # a program of its own, which tests may run
LONGEST_SLEEP = 0.1  # seconds; a test that is no real-time test may poll, and not wait


@cache
def sources() -> Mapping[Path, ast.Module]:
    found = {path.relative_to(TESTS): ast.parse(path.read_text(encoding="utf-8")) for path in TESTS.rglob("*.py")}
    assert len(found) > 200
    return found


# -- where shared code lies ------------------------------------------------------------------------------------------


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                yield "tests." + "." * node.level
            elif node.module and node.module.partition(".")[0] == "tests":
                yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.partition(".")[0] == "tests")


def astray(path: Path, name: str) -> bool:
    """Whether a file of the tests imports what it should not: a test, a conftest, or a helper of another room."""
    parts = name.split(".")[1:]
    if any(part == "conftest" or part.startswith("test_") for part in parts):
        return True
    room = path.parts[0] if len(path.parts) > 1 else ""
    allowed = {room, "support", *PROGRAMS}
    return (TESTS / parts[0]).is_dir() and parts[0] not in allowed


def test_what_rooms_share_lies_in_support() -> None:
    found = [f"{path}: {name}" for path, tree in sources().items() for name in imported(tree) if astray(path, name)]
    assert found == []


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        ("web/test_api.py", "tests.support.study.make_root", False),
        ("web/test_api.py", "tests.web.browser.serving.served", False),
        ("web/test_api.py", "tests.store.helper", True),
        ("web/test_api.py", "tests.web.conftest.kept", True),
        ("web/test_api.py", "tests.web.test_fuzz.TEXTS", True),
        ("support/study.py", "tests.web.browser.serving", True),
        ("test_api.py", "tests.import_rule.breaches", False),
    ],
)
def test_an_import_that_goes_astray_is_found(path: str, name: str, expected: bool) -> None:
    assert astray(Path(path), name) is expected


# -- clocks ----------------------------------------------------------------------------------------------------------


def by_the_clock(tree: ast.Module) -> list[str]:
    """Where a test that is no real-time test waits for long, or looks at a clock that measures."""
    found: list[str] = []
    for top in tree.body:
        if any("mark.realtime" in ast.unparse(mark) for mark in getattr(top, "decorator_list", [])):
            continue
        for node in ast.walk(top):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in ("time.sleep", "sleep"):
                (length,) = node.args
                if not isinstance(length, ast.Constant) or length.value > LONGEST_SLEEP:
                    found.append(f"line {node.lineno}: {ast.unparse(node)}")
            elif called in ("time.monotonic", "time.perf_counter"):
                found.append(f"line {node.lineno}: {called}")
    return found


def test_only_real_time_tests_wait_or_measure_by_the_clock() -> None:
    tests = {path: tree for path, tree in sources().items() if path.parts[0] not in {"support", *PROGRAMS}}
    found = [f"{path}, {line}" for path, tree in tests.items() if path.name != "soak.py" for line in by_the_clock(tree)]
    assert found == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def test_a():\n    time.sleep(0.05)", 0),
        ("def test_a():\n    time.sleep(0.5)", 1),
        ("def test_a():\n    def inner():\n        time.sleep(wait)", 1),
        ("def test_a():\n    began = time.monotonic()\n    assert time.monotonic() - began < 5", 2),
        ("@pytest.mark.realtime\ndef test_a():\n    time.sleep(3)", 0),
        ("def test_a():\n    now = time.time()", 0),
    ],
)
def test_what_goes_by_the_clock_is_found(source: str, count: int) -> None:
    assert len(by_the_clock(ast.parse(source))) == count


# -- pages -----------------------------------------------------------------------------------------------------------

AT_ONCE = {
    *("all_inner_texts", "all_text_contents", "bounding_box", "evaluate", "evaluate_all", "get_attribute"),
    *("inner_html", "inner_text", "input_value", "is_checked", "is_disabled", "is_editable", "is_enabled"),
    *("is_hidden", "is_visible", "text_content"),
}  # methods of Playwright that answer with what a page shows just then
WAITING = {"until", "becomes"}  # ask again until it is so


def at_once(tree: ast.Module) -> list[str]:
    """Where a test goes by what a page shows at one moment, which on a slow machine is an earlier one."""
    asked = {node.args[0].id for node in _calls(tree) if _waits(node) and isinstance(node.args[0], ast.Name)}
    patient = [*filter(_waits, _calls(tree)), *(one for one in ast.walk(tree) if getattr(one, "name", None) in asked)]
    acts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # whose answer nobody reads
    waited = {id(inner) for one in patient for inner in ast.walk(one)} | acts
    reads = [
        f"line {node.lineno}: {ast.unparse(node)}" for node in _calls(tree) if _reads(node) and id(node) not in waited
    ]
    addresses = (node for one in ast.walk(tree) if isinstance(one, ast.Assert) for node in ast.walk(one))
    return reads + [f"line {node.lineno}: {found}" for node in addresses if (found := ast.unparse(node)) == "page.url"]  # type: ignore[attr-defined]


def _calls(tree: ast.Module) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _waits(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id in WAITING


def _reads(node: ast.Call) -> bool:
    if not isinstance(node.func, ast.Attribute):
        return False
    counts = node.func.attr in ("count", "all") and not node.args  # not those of a text
    return node.func.attr in AT_ONCE or counts


def test_no_browser_test_goes_by_what_a_page_shows_at_once() -> None:
    tests = {path: tree for path, tree in sources().items() if path.match("web/browser/test_*.py")}
    assert len(tests) > 5
    assert [f"{path}, {line}" for path, tree in tests.items() for line in at_once(tree)] == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("assert page.inner_text('h1') == 'a'", 1),
        ("heads = page.locator('th').all_inner_texts()", 1),
        ("box = line.bounding_box()", 1),
        ("assert page.locator('a').count() == 0", 1),
        ("assert 'axis=time' in page.url", 1),
        ("assert page.evaluate('innerWidth') < 3", 1),
        ("page.evaluate('scrollTo(0, 0)')", 0),
        ("becomes(lambda: page.inner_text('h1'), 'a')", 0),
        ("def cells():\n    return page.locator('td').all_inner_texts()\nbecomes(cells, ['a'])", 0),
        ("expect(page.locator('a')).to_have_count(0)", 0),
        ("assert 'abc'.count('a') == 1", 0),
    ],
)
def test_a_reading_at_once_is_found(source: str, count: int) -> None:
    assert len(at_once(ast.parse(source))) == count


# -- what is private -------------------------------------------------------------------------------------------------

PRIVATE = 33  # uses of private names that are left; it may only fall
STAND_IN = Path("support/pretend/device.py")  # takes the place of a part of torch, from within


def private(tree: ast.Module) -> list[str]:
    """Private names of others that a test uses: as attributes, imports, or strings of a patch."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls", "os"):
            found.append(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "getattr")):
            named = (word.value for word in node.args[:2] if isinstance(word, ast.Constant))
            found += [word.rpartition(".")[2] for word in named if isinstance(word, str)]
    mine = (name for name in found if name.startswith("_") and not name.startswith("__") and name != "_fields")
    return [name for name in mine if not name.endswith("_")]  # as IPython's `_repr_html_`


def test_no_test_more_uses_private_names() -> None:
    others = {path: tree for path, tree in sources().items() if path != STAND_IN}
    assert len(others) == len(sources()) - 1
    found = [f"{path}: {name}" for path, tree in others.items() for name in private(tree)]
    assert len(found) <= PRIVATE, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("store._writer.begin()", 1),
        ("from prunegpt.trial import _cause", 1),
        ("patch.setattr(engine, '_BUSY', 1)", 1),
        ("patch.setattr('prunegpt.store.engine._BUSY', 1)", 1),
        ("self._own = os._exit", 0),
        ("name.__doc__", 0),
    ],
)
def test_a_use_of_a_private_name_is_found(source: str, count: int) -> None:
    assert len(private(ast.parse(source))) == count


# -- the fast tier ---------------------------------------------------------------------------------------------------


def test_the_fast_tier_is_of_every_room() -> None:
    listed = [line.partition("::")[0] for line in (TESTS / "fast.txt").read_text(encoding="utf-8").split()]
    assert [path for path in listed if not (TESTS.parent / path).is_file()] == []
    rooms = {path.parts[0] for path in sources() if len(path.parts) > 1 and path.name.startswith("test_")} - PROGRAMS
    assert rooms <= {Path(path).parts[1] for path in listed}

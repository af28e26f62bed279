"""The import rule: imports flow one way, the two sides never meet, and what needs no torch does not load it."""

import subprocess
import sys
from pathlib import Path

import pytest

import prunegpt
from tests.import_rule import TOP, breaches, circles, imports, modules, part_of

ROOT = Path(prunegpt.__file__).parent

# Part -> what it may import beside itself and `prunegpt.__version__`. To be read downwards.
_GROUND = frozenset({"errors", "redact", "registry", "root", "builtin", "spec"})
_PLANS = _GROUND | {"recipes", "planning"}
ALLOWED: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "redact": frozenset(),
    "registry": frozenset({"errors"}),
    "root": frozenset({"errors"}),
    "signals": frozenset(),
    "memory": frozenset(),
    "usage": frozenset(),
    "access": frozenset({"root"}),
    "builtin": frozenset({"errors", "registry", "root"}),
    "templates": frozenset(),
    "spec": _GROUND - {"spec"},
    "records": _GROUND,
    "points": frozenset({"records"}),
    "recipes": _GROUND,
    "planning": _GROUND | {"recipes"},
    # the tensor side
    "lm": _PLANS | {"records", "points", "memory"},
    "pruning": _PLANS | {"records", "points", "lm"},
    "shrinking": _PLANS | {"records", "points", "lm", "pruning"},
    "distill": _PLANS | {"records", "points", "lm", "pruning"},
    "training": _PLANS | {"records", "points", "lm", "pruning", "shrinking", "distill"},
    "stages": _PLANS | {"records", "points", "lm", "pruning", "shrinking", "distill", "training", "memory", "usage"},
    "exporting": _PLANS | {"lm", "pruning", "stages"},
    "trial": _PLANS
    | {"records", "points", "signals", "usage", "lm", "pruning", "shrinking", "distill", "training", "stages"},
    # the book-keeping side
    "store": frozenset({"errors", "redact", "registry", "root", "spec", "records", "points", "memory"}),
    "launch": frozenset({"errors", "redact", "registry", "root", "signals", "spec", "records", "points"}),
    "sweep": _PLANS | {"records", "points", "signals", "store", "launch"},
    "report": frozenset({"errors", "redact", "registry", "root", "spec", "records", "points"}),
    "tracking": _PLANS | {"signals", "access", "records", "points", "store", "launch", "sweep", "report"},
    "web": _PLANS | {"access", "records", "points", "store", "launch", "sweep", "report", "tracking", "memory"},
}
ON_TOP = frozenset({"cli", "api", "running", "__main__"})  # may import everything
TENSORS = frozenset({"lm", "pruning", "shrinking", "distill", "training", "stages", "exporting"})
BOOKS = frozenset({"store", "launch", "sweep", "report", "web"})
TABLE = {**ALLOWED, **dict.fromkeys(ON_TOP, frozenset({*ALLOWED, *ON_TOP}))}


def test_no_file_is_too_long_to_read() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert not {path: count for path, count in lines.items() if count > 450}


def test_every_import_is_one_that_the_table_allows() -> None:
    found = imports(ROOT)
    assert len(found) > 100
    assert not breaches(found, TABLE)


def test_no_module_imports_itself_in_a_circle() -> None:
    assert not circles([item for item in imports(ROOT) if item.target != "prunegpt"])


def test_every_part_of_the_house_is_in_the_table_and_on_the_map() -> None:
    parts = {part_of(module) for module in modules(ROOT)} - {TOP}
    assert parts
    assert parts <= set(TABLE)
    lines = [line.split() for line in str(prunegpt.__doc__).splitlines()]
    mapped = {words[0].rstrip("/") for words in lines if words}
    assert parts - {"__main__"} <= mapped


def test_the_table_has_no_circle_and_keeps_the_sides_apart() -> None:
    for part, allowed in ALLOWED.items():
        assert part not in allowed
        assert all(part not in ALLOWED[other] for other in allowed), f"{part} and another import each other"
        assert not allowed & ON_TOP
    reached = {part: set(ALLOWED[part]) for part in ALLOWED}
    for _ in ALLOWED:
        reached = {
            part: others | {far for other in others for far in reached[other]} for part, others in reached.items()
        }
    assert not [part for part, others in reached.items() if part in others]
    assert not [part for part in TENSORS if reached[part] & (BOOKS | {"tracking"})]
    assert not [part for part in BOOKS if reached[part] & (TENSORS | {"trial"})]


def test_the_names_of_built_in_models_and_texts_need_nothing_heavy() -> None:
    heavy = [item for item in imports(ROOT) if item.module == "prunegpt.builtin"]
    assert not heavy


# -- the checker itself ----------------------------------------------------------------------------------------------


def planted(folder: Path, **files: str) -> Path:
    """A package with these modules: `lm__data` is lm/data.py; every folder is a package."""
    root = folder / "prunegpt"
    for name, source in files.items():
        path = root.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    for directory in {file.parent for file in root.rglob("*.py")} | {root}:
        (directory / "__init__.py").touch()
    return root


PLANTED = {
    "at the top": "from prunegpt.store import engine",
    "a whole module": "import prunegpt.store.engine",
    "under another name": "import prunegpt.store as books",
    "of the package": "from prunegpt import store",
    "of an attribute": "from prunegpt.store.engine import thing",
    "relative": "from ..store import engine",
    "relative, of the package": "from .. import store",
    "in a function": "def f():\n    import prunegpt.store",
    "in a method of a class": "class A:\n    def f(self):\n        from prunegpt.store.engine import thing",
    "in a try": "try:\n    import prunegpt.store\nexcept ImportError:\n    pass",
    "where no types are checked": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    import prunegpt.store"
    ),
    "in a condition": "import sys\nif sys.platform:\n    import prunegpt.store",
}
assert PLANTED


@pytest.mark.parametrize("source", PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_breach_is_found(source: str, tmp_path: Path) -> None:
    root = planted(tmp_path, lm__data=source, store__engine="thing = 1")
    found = breaches(imports(root), TABLE)
    assert len(found) == 1
    line = source[: source.index("store")].count("\n") + 1
    assert found[0].startswith(f"data.py:{line}: prunegpt.lm.data imports prunegpt.store")


GOOD = {
    "downwards": "from prunegpt.errors import ModelError",
    "the version": "from prunegpt import __version__",
    "beside": "from prunegpt.lm import data\nfrom . import data\nfrom .data import x",
    "for types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from prunegpt.store import engine",
    "for types, qualified": "import typing\nif typing.TYPE_CHECKING:\n    from prunegpt.store import engine",
    "another package": "import prunegptx.store\nfrom store import prunegpt",
    "a string": "text = 'import prunegpt.store'",
}
assert GOOD


@pytest.mark.parametrize("source", GOOD.values(), ids=GOOD.keys())
def test_what_is_no_breach_is_not_told(source: str, tmp_path: Path) -> None:
    root = planted(tmp_path, lm__models=source, lm__data="x = 1", errors="", store__engine="")
    assert breaches(imports(root), TABLE) == []


def test_a_part_that_the_table_lacks_may_import_nothing(tmp_path: Path) -> None:
    root = planted(tmp_path, novel__a="import prunegpt.errors", errors="")
    assert breaches(imports(root), TABLE) == ["a.py:1: prunegpt.novel.a imports prunegpt.errors"]


def test_a_package_imports_relative_to_itself(tmp_path: Path) -> None:
    root = planted(
        tmp_path, lm__data="", lm__deep__er="from ..data import x\nfrom ...store import engine", store__engine=""
    )
    (root / "lm" / "__init__.py").write_text("from .data import x\nfrom ..store import engine\n")
    assert breaches(imports(root), TABLE) == [
        "__init__.py:2: prunegpt.lm imports prunegpt.store.engine",
        "er.py:2: prunegpt.lm.deep.er imports prunegpt.store.engine",
    ]


def test_a_planted_circle_is_found_once(tmp_path: Path) -> None:
    root = planted(
        tmp_path,
        lm__a="from prunegpt.lm.b import x",
        lm__b="def f():\n    import prunegpt.lm.c",
        lm__c="from .a import y",
        lm__d="import prunegpt.lm.a",
    )
    assert circles(imports(root)) == [["prunegpt.lm.a", "prunegpt.lm.b", "prunegpt.lm.c"]]


# -- what must not load torch ----------------------------------------------------------------------------------------

HEAVY = ("torch", "transformers", "datasets", "accelerate")
_LIGHT = ("errors", "registry", "root", "records", "spec", "recipes", "planning", "store", "launch", "sweep", "report")


def light_modules() -> list[str]:
    names = [module for module in modules(ROOT) if part_of(module) in _LIGHT and "migrations" not in module]
    return ["prunegpt", "prunegpt.builtin", "prunegpt.cli", *names]


def run(code: str, *, folder: Path | None = None) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_plans_and_keeps_books_loads_nothing_heavy() -> None:
    names = light_modules()
    assert len(names) > 40
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
    loaded = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]
    if loaded:
        print(name, loaded)
        break
"""
    assert run(code) == ""


COMMANDS = (
    ("--help",),
    ("--version",),
    ("sweep", "--help"),
    ("sweep", "status", "--help"),
    ("sweep", "status", "--root", "."),
)


def test_light_commands_load_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import sys
from prunegpt.cli import main
from prunegpt.root import Root
from prunegpt.store import Store
with Store.open(Root.find(".")):
    pass
for arguments in {COMMANDS!r}:
    sys.argv = ["prunegpt", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
    assert not [heavy for heavy in {HEAVY!r} if heavy in sys.modules], arguments
print("LOADED []")
"""
    assert run(code, folder=tmp_path).splitlines()[-1] == "LOADED []"


def test_help_loads_what_it_prints() -> None:
    """All commands with their options and the names of built-in parts: no more than typer and our own modules."""
    code = """
import sys
from prunegpt.cli import main
sys.argv = ["prunegpt", "--help"]
try:
    main()
except SystemExit:
    print([name for name in ("pydantic", "sqlalchemy", "numpy", "ruamel.yaml", "optuna") if name in sys.modules])
"""
    assert run(code).splitlines()[-1] == "[]"


def test_planning_a_spec_loads_nothing_heavy(tmp_path: Path) -> None:
    spec = ROOT.parent / "sweeps" / "quickstart.yaml"
    code = f"""
import sys
from pathlib import Path
from prunegpt.planning.resolve import plan_file
assert plan_file(Path({str(spec)!r}), strict=True).trials
print([heavy for heavy in {HEAVY!r} if heavy in sys.modules])
"""
    assert run(code, folder=tmp_path) == "[]"

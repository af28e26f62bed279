"""Text that users and readers meet uses the words of the field: PyTorch, transformers, Optuna, Weights & Biases.

`BANNED` maps a pattern to what to write instead. It is applied to string literals, docstrings and comments of the
package, to the pages and their scripts, to the documents, and to the specs that ship with it. Exempt are literals of
one word, which are names of fields and files, released parts of the changelog, and recipes, whose bytes are in keys.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from prunegpt.errors import MOST_LISTED

ROOT = Path(__file__).parents[1]

UNITS = (
    "GPU|slot|trial|second|token|weight|window|epoch|step|value|cycle|method|point|update|seed|layer|device|process|"
    "stage|launcher|agent"
)
COUNTED = "one|rows?|lines?|points?|bits?|bytes|nats?|tokens?|steps|numbers?|indices|files?|chunks?|entry|modifier"

BANNED = {
    r"\btold\b|\btells?\b(?! apart)": "report, show, log",
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"\bways? out\b": "hint",
    r"\bg(ives?|iven|ave|iving) (it |them )?up\b": "stop early, abandon",
    r"\bwaits? (to be (tried|run) )?again\b": "requeue, queue",
    r"\bwish(es|ed)?\b": "request",
    r"\bladder\b": "damping schedule",
    rf"\b({COUNTED}) an? ({UNITS})\b": "per",
    r"\btexts\b|\b(calibration|training|validation) text\b|\bother text than\b|\bthe text (must|has)": "dataset",
    r"\bdata sets?\b": "dataset",
    r"\bdecoder blocks?\b|\bblock (index|indices|matrices)\b|\b(each|pruned) blocks? (sees|before)\b": "decoder layer",
    r"\b(training|token) blocks?\b": "training sequence",
    r"\b(go|goes|went|going|gone) on\b": "resume, continue",
    r"\b(lie|lies|lay)\b": "is, is stored",
    r"\blook(s|ed|ing)? (at|after|on|again|into|back)\b": "inspect, check, use",
    r"\b(is|are|was) said\b|\bsays? (nothing|so|how|why)\b|\bneither says\b": "report, specify",
    r"\bwhere (not|none|nothing|neither) (is )?(given|says|said)\b": "default: …",
    r"\bso many\b": "N, at most N",
    r"\banew\b": "again, rebuild",
    r"\bsigns? of life\b": "heartbeat",
    r"\bfor want of\b": "for lack of",
    r"\bwhoever\b": "the process that, anyone who",
    r"\b(can|cannot|could|to) be had\b|\bcan not be had\b": "is (not) available",
    r"\bwhat (came|comes) (of|out)\b": "results",
    r"\bprocessors?\b": "CPU",
    r"\bspecial signs\b": "special characters",
    r"\bstands?\b(?! for\b)|\bstood\b": "is, appears",
    r"\bknows? no\b|\bknows? nothing\b": "has no",
    r"\bunasked\b": "without confirmation",
    r"\b(known )?holes\b": "vulnerabilities",
    r"\btakes? (it|them|trials) up\b|\btaken (in|up)\b": "pick up, import",
    r"\bover the spec\b": "overrides the spec",
    r"\bof (Optuna|W&B|PruneGPT|SparseML)'s( own)?\b": "Optuna file, W&B …",
    r"\bgot there\b": "reached",
    r"\bheard of\b": "heartbeat",
    r"\bon its way\b": "in progress",
    r"\bmust\b[^.;]*, but\b|\bbut got\b|; got\b": "RULE, got VALUE. HINT, or RULE; VALUE-SENTENCE. HINT",
    r"[\d}] %(?![\w({])": "80%, without a space",
    r"What (lies where|grows with what|visitors must know)|\bkept by\b": "Directory layout, Scaling, Access token",
}
ANY = re.compile("|".join(BANNED))


def _strings(path: Path) -> Iterator[tuple[int, str]]:
    """Literals, docstrings and comments of a Python file; fields of an f-string read as `{}`."""
    source = path.read_text("utf-8")
    inside: set[int] = set()
    literals = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            inside.update(id(part) for part in node.values)
            parts = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            literals.append((node.lineno, "".join(parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            literals.append((node.lineno, node.value))
    yield from ((line, text) for line, text in literals if " " in text)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _prose(path: Path) -> Iterator[tuple[int, str]]:
    """A document, paragraph by paragraph; of the changelog only what is not released."""
    text = path.read_text("utf-8")
    if path.name == "CHANGELOG.md":
        text = re.split(r"(?m)^## (?!Unreleased)", text)[0]
    text = re.sub(r"{%.*?%}", "{}", text)
    line = 1
    for paragraph in re.split(r"(\n\s*\n)", text):
        yield line, paragraph
        line += paragraph.count("\n")


def _files() -> list[Path]:
    listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    suffixes = {".py", ".md", ".html", ".js", ".yaml"}
    kept = ("tests/", "sweeps/recipes/")  # the bytes of a recipe are in the keys of its stages
    return [ROOT / name for name in listed if Path(name).suffix in suffixes and not name.startswith(kept)]


def violations(path: Path) -> Iterator[str]:
    """`FILE:LINE: "PHRASE": write SUGGESTION`, for every banned phrase."""
    for line, text in (_strings if path.suffix == ".py" else _prose)(path):
        joined = " ".join(text.split())
        if not ANY.search(joined):
            continue
        for pattern, suggestion in BANNED.items():
            for match in re.finditer(pattern, joined):
                lines = [place for place, row in enumerate(text.splitlines()) if match[0] in row]
                yield f'{path.relative_to(ROOT)}:{line + (lines or [0])[0]}: "{match[0]}": write {suggestion}'


def test_the_words_are_the_fields() -> None:
    found = [one for path in _files() for one in violations(path)]
    assert not found, f"{len(found)} phrases:\n" + "\n".join(found)


def test_names_of_classes_say_what_they_are() -> None:
    riddles = {"Ledger", "Board", "Desk", "Shelf", "Sentry", "Signs", "Scribe", "Sheets", "Kept"}
    trees = ((path, ast.parse(path.read_text("utf-8"))) for path in _files() if path.suffix == ".py")
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        for path, tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.strip("_") in riddles
    ]
    assert not found


def test_a_name_of_a_class_is_that_of_one_thing() -> None:
    """Over classes and type aliases of the package that are public in their module."""
    places: dict[str, list[str]] = {}
    for path in _files():
        if path.suffix != ".py" or not path.is_relative_to(ROOT / "prunegpt"):
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            name = node.name if isinstance(node, ast.ClassDef) else target.id if isinstance(target, ast.Name) else ""
            if re.match("[A-Z][a-z]", name):
                places.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert len(places) > 300
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


COUNTED_THINGS = "trial|stage|model|file|column|sweep|attempt|seed|row|window|document|problem"
BARE = re.compile(rf"(?<!of )(?<!most )\{{(?!counted)[^{{}}]+\}} (more |finished )?({COUNTED_THINGS})s\b")


def test_numbers_of_things_are_worded_by_one_function() -> None:
    """No "1 trials": what is printed writes `counted(n, "trial")`."""
    rooms = ("cli", "store", "tracking")
    paths = [path for room in rooms for path in sorted((ROOT / "prunegpt" / room).rglob("*.py"))]
    lines = [(path.relative_to(ROOT), line) for path in paths for line in path.read_text("utf-8").splitlines()]
    printed = [(path, line) for path, line in lines if re.search(r"""f["']""", line)]
    assert len(printed) > 200
    assert [f"{path}: {line.strip()}" for path, line in printed if BARE.search(line)] == []


def test_what_is_listed_in_an_error_has_an_end() -> None:
    """Names in a message are `listed(...)`, a slice, or a short constant: never as many as there happen to be."""
    checked, found = 0, []
    for path in sorted((ROOT / "prunegpt").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        raised = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Raise)]
        for call in (node for one in raised for node in ast.walk(one) if isinstance(node, ast.Call)):
            match call:
                case ast.Call(func=ast.Name(id="listed" | "unknown")):
                    checked += 1
                case ast.Call(func=ast.Attribute(value=ast.Constant(value=", "), attr="join"), args=[joined]):
                    constant = isinstance(joined, ast.Name) and joined.id.isupper()
                    short = constant and len(getattr(import_module(module), joined.id)) <= MOST_LISTED
                    if not short and not isinstance(joined, ast.Subscript):
                        found.append(f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(joined)}")
    assert checked > 50
    assert found == []

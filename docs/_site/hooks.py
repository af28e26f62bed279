"""What mkdocs does beside its own: the generated reference, files from outside docs/, and links to them.

Pages are written for a reader of the repository too: their links lead to real files, `../../SECURITY.md` or a picture
of a test. Here they become pages of the site, copied files, or links to the repository.
"""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from reference import GENERATED

CHECKOUT = Path(__file__).resolve().parents[2]
COPIED = "repository"  # folder of the site with files from outside docs/
_PART = re.compile(r"^<!-- (generated|include): (\S+) -->$", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_ASKS = re.compile(r"""<(?:script|img|iframe)[^>]*\ssrc="?(https?:[^"\s>]+)""")
_FENCED = re.compile(r"^(`{3,})[^\n]*\n.*?^\1$", re.MULTILINE | re.DOTALL)
# Files outside docs/ that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "design/architecture.md",
    "CONTRIBUTING.md": "design/contributing.md",
    "SECURITY.md": "design/security.md",
    "CHANGELOG.md": "design/changelog.md",
    "sweeps/README.md": "reference/spec.md",
    "sweeps/RECIPES.md": "reference/recipes.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Pictures that pages show are files of the site."""
    found = [*(CHECKOUT / "tests/web/pictures").glob("*.png"), *(CHECKOUT / "sweeps/results").glob("*/*.svg")]
    for path in found:
        name = f"{COPIED}/{path.relative_to(CHECKOUT).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Generated and included parts are put in, and links outside docs/ are resolved."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def put(found: re.Match[str]) -> str:
        if found[1] == "generated":
            return GENERATED[found[2]]()
        text = (CHECKOUT / found[2]).read_text(encoding="utf-8").partition("\n")[2]
        return linked(text, posixpath.dirname(found[2]), folder, config.repo_url)

    return linked(_PART.sub(put, markdown), folder, folder, config.repo_url)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """No page asks another host for anything: it is read without a network.

    Raises:
        ValueError: it does.
    """
    if found := _ASKS.search(output):
        raise ValueError(f"a page must be whole without a network; {page.file.src_uri} asks for {found[1]}.")
    return output


def linked(text: str, origin: str, folder: str, repository: str) -> str:
    """Markdown whose links fit a page in `folder`; those of text from `origin` are relative to that."""

    def link(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(origin, found[1]))
        anchor = found[2] or ""
        if origin == folder and path.startswith("docs/"):
            return found[0]  # mkdocs checks it
        if path in PAGES:
            path = f"docs/{PAGES[path]}"
        elif path.endswith((".png", ".svg")) and not path.startswith("docs/"):
            path = f"docs/{COPIED}/{path}"
        elif not path.startswith("docs/"):
            if not (CHECKOUT / path).exists():
                raise ValueError(f"a link must lead to a file; {found[1]} in {folder} does not.")
            return f"{repository}/blob/main/{path}{anchor}"
        return posixpath.relpath(path, folder) + anchor

    parts, last = [], 0
    for fence in _FENCED.finditer(text):
        parts += [_LINK.sub(link, text[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*parts, _LINK.sub(link, text[last:])])

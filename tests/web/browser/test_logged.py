"""The page of a run that a W&B client has logged, in a real browser: all that it shows."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.tracking.endpoint.artifacts import Artifacts
from prunegpt.tracking.foreign import Keeper
from prunegpt.tracking.run_path import RunPath
from tests.support.serving import expect, served, settled

if TYPE_CHECKING:
    from playwright.sync_api import Page

AT = RunPath("local", "views", "run1")
SCRIPT = """<p id="told">page</p><script>
told.textContent = "script";
try { parent.document.title = "taken" } catch { told.textContent += ", kept apart" }
</script>"""
POINTS = {"columns": ["x", "y", "who"], "data": [[0, 1, "<b>"], [1, 2, "b"]]}
PLOTS = {
    "line": {"x": "x", "y": "y", "stroke": "who"},
    "lineseries": {"step": "x", "lineVal": "y", "lineKey": "who"},
    "area-under-curve": {"x": "x", "y": "y", "class": "who"},
    "scatter": {"x": "x", "y": "y"},
    "bar": {"label": "who", "value": "y"},
    "histogram": {"value": "y"},
    "confusion_matrix": {"Actual": "who", "Predicted": "x", "nPredictions": "y"},
}


def _png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" + b"\xff\0\0" * 2)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*one)
        for one in ((b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b""))
    )


def _logged(root: Root) -> None:
    """A run with something of each kind that is shown."""
    kinds = {name: "v1" if name == "confusion_matrix" else "v0" for name in PLOTS}
    told: dict[str, Any] = {
        f"eval/{name}": {
            "panel_type": "Vega2",
            "panel_config": {
                "panelDefId": f"wandb/{name}/{kinds[name]}",
                "fieldSettings": {**fields, "stroke": fields.get("stroke")},
                "stringSettings": {"title": f"Plot {name}"},
            },
        }
        for name, fields in PLOTS.items()
    }
    with Store.open(root) as store:
        run = Keeper(root, store, AT)
        run.update(
            client={"visualize": told}, summary={f"eval/{name}_table": {"path": "points.json"} for name in PLOTS}
        )
        run.add([{"_step": step, "train/loss": 3.0 - step} for step in range(3)], 0)
        files = run.folder / "files"
        files.mkdir()
        (files / "points.json").write_text(json.dumps(POINTS))
        (files / "table.table.json").write_text(json.dumps({"columns": ["prompt"], "data": [["<i>hi</i>"]]}))
        (files / "page.html").write_text(SCRIPT)
        (files / "image.png").write_bytes(_png())
    artifacts = Artifacts(root)
    made = artifacts.create(
        deduplicate=False,
        entity=AT.entity,
        project=AT.project,
        type="dataset",
        collection="data",
        digest="d",
        run=AT.id,
    )
    made.manifest = f"{made.id}-m.json"
    content, digest = root.path / "content", "5d41402abc4b2a76b9719d911017c592"  # MD5 of hello
    content.write_text("hello")
    artifacts.take_file(digest, content)
    entries = {
        "a.txt": {"digest": "XUFAKrxLKna5cZ2REBfFkg==", "size": 5},
        "big.bin": {"digest": "x", "size": 7, "ref": "javascript:alert(1)"},
    }
    content.write_text(json.dumps({"contents": entries}))
    artifacts.take_manifest(made.manifest, content)
    artifacts.commit(made)


@pytest.fixture
def views(tmp_path: Path) -> Iterator[str]:
    _logged(Root(tmp_path))
    with served(Root(tmp_path)) as address:
        yield address


@pytest.mark.slow
def test_a_run_shows_all_that_it_has_logged(views: str, page: "Page") -> None:
    page.goto(f"{views}/trials/wandb-views/run1")
    page.wait_for_selector("main .js-plotly-plot .main-svg")
    for title in ("train/loss", *(f"Plot {name}" for name in PLOTS)):
        panel = page.locator("div.panel.figure", has=page.get_by_role("heading", name=title, exact=True))
        panel.scroll_into_view_if_needed()
        panel.locator(".js-plotly-plot .main-svg").first.wait_for()
    image = page.locator("img[alt='image.png']")
    image.scroll_into_view_if_needed()
    expect(image).to_have_js_property("naturalWidth", 2)
    frame = page.locator("iframe.page")
    frame.scroll_into_view_if_needed()
    expect(frame).to_have_attribute("sandbox", "allow-scripts")
    page.frame_locator("iframe.page").get_by_text("script, kept apart").wait_for()
    page.get_by_role("button", name="Show").click()
    page.get_by_text("<i>hi</i>").wait_for()
    page.locator("details", has_text="a.txt").locator("summary").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="a.txt").click()
    expect(page.get_by_role("link", name="big.bin")).to_have_count(0)  # a reference may lead anywhere
    assert download.value.path().read_text() == "hello"
    settled(page)

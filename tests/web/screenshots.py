"""Pictures of the dashboard's main pages, for the README: python -m tests.web.screenshots ROOT FOLDER [SWEEP]."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from prunegpt.root import Root
from prunegpt.store import Store
from tests.support.serving import browser, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_WIDE = (1440, 900)
_PHONE = (390, 844)
_DRAWN = ".js-plotly-plot .main-svg"
_SETTLES = 800  # milliseconds after the last thing that is waited for
_COLOURS = 128  # of a picture, which is half as large then


def main(root: Path, folder: Path, sweep: str | None = None) -> list[Path]:
    """Writes the pictures and gives their paths.

    Args:
        root: a root with at least one sweep that has finished trials; it is only read.
        folder: where the pictures go.
        sweep: its name; the first of the root where not given.
    """
    with Store.open(Root(root), create=False) as store:
        name = sweep or store.sweeps()[0].name
        finished = [trial for trial in store.results(name) if trial.state == "finished"]
        trained = [trial for trial in finished if any(curve.last_step > 0 for curve in store.curves(trial.id))]
    shown = max(
        trained or finished, key=lambda trial: (trial.sparsity is not None and trial.sparsity.pruned, len(trial.stages))
    )
    others = [trial for trial in trained if trial.name != shown.name]
    compared = "&".join(f"trial={name}/{trial.name}" for trial in [shown, *others[:: max(1, len(others) // 3)]][:4])
    pages = (
        ("sweeps", "/", "article.sweep-card", _WIDE, "light"),
        ("sweep", f"/sweeps/{name}", "#results table", _WIDE, "light"),
        ("sweep-dark", f"/sweeps/{name}#figures", _DRAWN, _WIDE, "dark"),
        ("trials", f"/sweeps/{name}#trials", "tr[data-place]", _WIDE, "light"),
        ("stages", f"/sweeps/{name}#stages", "g.node", _WIDE, "light"),
        ("trial", f"/trials/{name}/{shown.name}", _DRAWN, _WIDE, "light"),
        ("compare", f"/compare?{compared}", ".compare-table", _WIDE, "dark"),
        ("tables", f"/sweeps/{name}/tables", ".report table", _WIDE, "light"),
        ("phone", f"/sweeps/{name}", "#results table", _PHONE, "light"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with served(Root(root)) as address, browser() as chromium:
        for picture, path, wait, size, scheme in pages:
            written.append(_take(chromium, address + path, wait, size, scheme, folder / f"{picture}.png"))
    return written


def _take(chromium: "Browser", url: str, wait: str, size: tuple[int, int], scheme: str, file: Path) -> Path:
    context = chromium.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,  # type: ignore[arg-type]
        device_scale_factor=1.5,
    )
    page = context.new_page()
    page.goto(url)
    if part := url.partition("#")[2]:
        _scroll(page, part)
    page.wait_for_selector(wait)
    page.wait_for_timeout(_SETTLES)
    page.screenshot(path=file)
    context.close()
    with Image.open(file) as picture:
        smaller = picture.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    smaller.save(file, optimize=True)
    return file


def _scroll(page: "Page", part: str) -> None:
    """To a section; what lies above it grows while it is drawn, so twice."""
    for _ in range(2):
        page.wait_for_selector(f"#{part}:not([hidden])")
        page.evaluate(f"document.getElementById('{part}').scrollIntoView()")
        page.wait_for_timeout(_SETTLES)


if __name__ == "__main__":
    for written in main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]):
        print(written)

"""Tables and figures of a sweep, as a run of their own in its group."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prunegpt.planning.fingerprint import digest
from prunegpt.registry import RENDERERS
from prunegpt.report.figures import png
from prunegpt.report.gallery import figures_of
from prunegpt.report.measure import stored_windows
from prunegpt.report.tables import build_table
from prunegpt.root import Root
from prunegpt.spec.tracking import WandbSpec
from prunegpt.store import Store
from prunegpt.tracking.run_log import begin, forget_folder

_MOST_FIGURES = 12


def log_sheets(root: Root, spec: WandbSpec, sweep: str, mode: str) -> None:
    """Sends what the sweep's tables and figures are now; nothing where there is none yet."""
    import wandb

    with Store.open(root, create=False) as store:
        results, declared = store.results(sweep), store.tables(sweep)
        points = {one.name: store.points(one.id) for one in results if one.state == "finished"}
    windows = stored_windows(root)
    tables = [build_table(table, results, windows, sweep=sweep, commit=None) for table in declared]
    figures = figures_of(results, windows, points)[:_MOST_FIGURES]
    if not tables and not figures:
        return
    group = spec.group or sweep
    own = digest([sweep, "tables"])[:16]
    for earlier in (root.path / "wandb").glob(f"*run-*-{own}"):
        forget_folder(root, str(earlier.relative_to(root.path)))
    run = begin(root, spec, mode, own, name=f"{sweep}-tables", group=group, job_type="tables")
    told: dict[str, Any] = {}
    for table in json.loads(RENDERERS.load("json")(tables))["tables"]:
        rows = (
            [[_cell(row.get(column)) for column in table["rows"][0]] for row in table["rows"]] if table["rows"] else []
        )
        if rows:
            told[f"table/{table['name']}"] = wandb.Table(columns=list(table["rows"][0]), data=rows)
    with TemporaryDirectory() as folder:
        for figure in figures:
            path = Path(folder) / f"{figure.name}.png"
            path.write_bytes(png(figure.figure))
            told[f"figure/{figure.name}"] = wandb.Image(str(path), caption=figure.caption)
        run.log(told)
        run.finish()


def _cell(value: Any) -> Any:
    """A value that a column of mixed kinds can hold."""
    if value is None or isinstance(value, (int, float, str, bool)):
        return value
    return json.dumps(value, ensure_ascii=False)

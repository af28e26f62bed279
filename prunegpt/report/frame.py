"""Results as data frames."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunegpt.errors import PruneGPTError
from prunegpt.records import TrialResult
from prunegpt.report.curve_fields import curve_fields
from prunegpt.report.fields import TrialFields
from prunegpt.report.measure import measure, stored_windows
from prunegpt.root import Root

if TYPE_CHECKING:
    from pandas import DataFrame

    from prunegpt.store.curves import Summaries


def frame(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> "DataFrame":
    """Raises PruneGPTError where pandas is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise PruneGPTError("results as data frames need pandas. Install it: pip install 'prunegpt[pandas]'") from error
    return pandas.DataFrame(rows, columns=columns)


def rows(
    results: Sequence[TrialResult], root: Root | None, summaries: "Summaries | None" = None
) -> list[dict[str, Any]]:
    """A row for each trial: its fields, but for the configuration that was not swept, and single tensors and stages.

    Args:
        root: where intervals are to be computed, from the losses of windows that it holds.
        summaries: of their curves.
    """
    found = {trial.id: measure([trial], stored_windows(root)) for trial in results} if root else {}
    ends = {key: (one.interval.low, one.interval.high) for key, one in found.items() if one and one.interval}
    catalogue = TrialFields(results, interval=lambda trial: ends.get(trial.id))
    fields = [field for field in catalogue if field.origin not in ("config", "curve")]
    fields += curve_fields(summaries, every=False).values() if summaries else ()
    names = {field.key: "trial" if field.key == "name" else field.name for field in fields}
    return [{names[field.key]: field.of(trial) for field in fields} | {"key": trial.key} for trial in results]

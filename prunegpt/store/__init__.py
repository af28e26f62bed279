"""The database of a root: sweeps, trials, attempts, stages and curves. One coordinator writes it, everybody may read.

`schema` holds the tables, `engine` opens them, `migrate` brings an old schema up to date, `write` and `read` are the
statements, and `Store` is the face the rest of the house uses.
"""

from prunegpt.store.rows import AttemptRow, CurveRow, SavedTrial, StageRow, StartedAttempt, SweepRow
from prunegpt.store.store import Store

__all__ = ["AttemptRow", "CurveRow", "SavedTrial", "StageRow", "StartedAttempt", "Store", "SweepRow"]

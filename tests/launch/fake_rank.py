"""One of several processes of a trial. What it does stands in the folder, in `do.txt`, as words of Python's own."""

import os
import sys
import time
from pathlib import Path

from prunegpt.records import AttemptRecord, record_path

if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])

    def leave(state: str, reason: str = "", error: str = "") -> None:
        """Writes this process's record."""
        AttemptRecord(
            sweep="sweep", trial="trial", attempt=3, state=state, reason=reason, error=error, ended=time.time()
        ).write(record_path(folder, rank))

    exec((folder / "do.txt").read_text())

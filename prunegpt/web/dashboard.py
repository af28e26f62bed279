"""What every request is answered from."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar, cast

from prunegpt.report.measure import stored_windows
from prunegpt.root import Root
from prunegpt.web.intervals import Intervals
from prunegpt.web.source import Source

T = TypeVar("T")
_MOST_KEPT = 64


class Kept:
    """The last results of costly functions, until what they were made from changes; made once though several ask."""

    def __init__(self) -> None:
        self._found: OrderedDict[Hashable, tuple[Hashable, object]] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, name: Hashable, state: Hashable, make: Callable[[], T]) -> T:
        """The result of that name for that state of its sources; made where it is of another state."""
        with self._lock:
            lock = self._making.setdefault(name, threading.Lock())
        with lock:
            with self._lock:
                known = self._found.get(name)
            if known is not None and known[0] == state:
                return cast(T, known[1])
            made = make()
            with self._lock:
                self._found[name] = (state, made)
                self._found.move_to_end(name)
                while len(self._found) > _MOST_KEPT:
                    dropped, _ = self._found.popitem(last=False)
                    self._making.pop(dropped, None)
            return made


@dataclass(frozen=True)
class Dashboard:
    """One root, its store as it is followed, and what was made of it."""

    root: Root
    source: Source
    intervals: Intervals
    kept: Kept
    budgets: dict[str, int | None] = field(default_factory=dict)  # stage key -> tokens it trains on, once counted

    @classmethod
    def open(cls, root: Root) -> "Dashboard":
        source = Source(root)
        return cls(root, source, Intervals(stored_windows(root), source.touch), Kept())

    def close(self) -> None:
        self.intervals.close()
        self.source.close()

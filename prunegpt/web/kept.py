"""What is costly to make is kept until what it was made from changes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

T = TypeVar("T")

_MOST = 64


class Kept:
    """The last results of some functions, each made once though several ask at the same time."""

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
                while len(self._found) > _MOST:
                    dropped, _ = self._found.popitem(last=False)
                    self._making.pop(dropped, None)
            return made

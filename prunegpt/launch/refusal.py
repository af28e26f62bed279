"""Whether what a launcher refuses now may be had later: a full queue passes, a partition that is not there stays so."""

import errno
import re
from collections.abc import Iterator

from prunegpt.errors import PruneGPTError

# What systems say while they are busy, short of something or away.
_PASSING_CODES = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EDQUOT,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.EMFILE,
    errno.ENETUNREACH,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.ESTALE,
}
# What schedulers say. A Slurm limit on how many jobs are submitted has Submit in its name, such as
# `QOSMaxSubmitJobPerUserLimit`; any other is on what one job asks for, and will be the same later.
_LIMIT = re.compile(r"\b(?:QOS|Assoc)\w+", re.IGNORECASE)
_PASSING_WORDS = re.compile(
    r"job submit limit|temporarily (?:unavailable|unable)|timed out|contact slurm controller|connect failure"
    r"|connection (?:refused|reset)|unexpected message received|zero bytes were transmitted|transport endpoint"
    r"|standby mode|slots are taken|too many (?:jobs|open files)|would exceed .*limit|cannot allocate memory"
    r"|no space left|try again later",
    re.IGNORECASE,
)


def passes(error: BaseException) -> bool:
    """Whether the same may be taken when it is asked for again.

    The error itself is judged, and what it was raised from. A plug-in's launcher signals it by raising TimeoutError,
    ConnectionError or an OSError such as EAGAIN, or a LaunchError from one.
    """
    chain = list(_chain(error))
    if any(isinstance(one, (TimeoutError, ConnectionError, MemoryError)) for one in chain):
        return True
    if any(isinstance(one, OSError) and one.errno in _PASSING_CODES for one in chain):
        return True
    words = "\n".join(map(str, chain))
    limits = _LIMIT.findall(words)
    return any("submit" in limit.lower() for limit in limits) if limits else bool(_PASSING_WORDS.search(words))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def reason_of(error: BaseException) -> str:
    """An error in one line, whatever type it is of."""
    words = " ".join(str(error).split())
    return words if words and isinstance(error, PruneGPTError) else f"{type(error).__name__}: {words}".rstrip(": ")

"""What is wrong under a root, what that means, and how it is repaired; `prunegpt doctor` shows it.

Nothing is examined that a coordinator is changing, and nothing is deleted without being asked: what is damaged gets
another name beside its own.
"""

from prunegpt.sweep.repair.examine import examine, repair
from prunegpt.sweep.repair.finding import Finding

__all__ = ["Finding", "examine", "repair"]

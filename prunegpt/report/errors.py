"""What a report refuses to say."""

from prunegpt.errors import PruneGPTError


class ReportError(PruneGPTError):
    """A table, figure or comparison that the results do not support."""

"""Secrets taken out of text before it is written: log lines, errors, records and exports."""

import os
import re
from collections.abc import Mapping

HIDDEN = "[redacted]"

_NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)S?$", re.IGNORECASE)
_SHORTEST = 8  # characters; a shorter value occurs in too much that is no secret
_SHAPES = (
    re.compile(r"(?<=\w://)[^\s/:@]*:[^\s/@]+(?=@)"),  # user:password@ of a URL
    re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}"),  # of the Hugging Face hub
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{8,}|(?<=basic )[A-Za-z0-9+/=]{16,}"),  # of an HTTP header
    re.compile(r"(?i)(?<=[?&]token=)[^\s&#\"']+|(?<=[?&]api_key=)[^\s&#\"']+|(?<=[?&]key=)[^\s&#\"']+"),  # of a URL
)


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text without secrets: values of environment variables with telling names, and what is shaped like one.

    Args:
        environment: default that of this process.
    """
    for secret in secrets(os.environ if environment is None else environment):
        text = text.replace(secret, HIDDEN)
    for shape in _SHAPES:
        text = shape.sub(HIDDEN, text)
    return text


def secrets(environment: Mapping[str, str]) -> list[str]:
    """Values that must not be written, the longest first, so that none hides half of another."""
    found = {value for name, value in environment.items() if is_secret(name) and len(value) >= _SHORTEST}
    return sorted(found, key=lambda value: (-len(value), value))


def is_secret(name: str) -> bool:
    """Whether a variable of that name holds a secret: WANDB_API_KEY, HF_TOKEN, DATABASE_PASSWORD."""
    return _NAMES.search(name) is not None

"""Names of trials: a template and what is varied."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prunegpt.errors import listed
from prunegpt.spec.part import MAX_NAME as MAX_NAME

_KEY = re.compile(r"\{([^{}]*)\}")


def trial_name(template: str, swept: Mapping[str, Any]) -> str:
    """`layer-{layers}` filled in, or `-key=value` appended for each varied key.

    Raises:
        ValueError: the template holds a key that is not varied, or a lone brace; or the name is too long.
    """
    keys = dict(zip(_short(list(swept)), map(slug, swept.values()), strict=True))
    if "{" in template or "}" in template:
        name = _KEY.sub(lambda match: keys.get(match[1], match[0]), template)
    else:
        name = template + "".join(f"-{slug(key)}={value}" for key, value in keys.items())
    if "{" in name or "}" in name:
        raise ValueError(f"a name may hold {{KEY}} of a varied key ({listed(keys)}), got {template!r}.")
    if len(name) > MAX_NAME:
        raise ValueError(
            f"a trial's name may have {MAX_NAME} characters; {name[:60]}... has {len(name)}. Choose a shorter name, or "
            f"fewer varied keys in it, such as {template[:20]}-{{{next(iter(keys), 'KEY')}}}."
        )
    return name


def _short(paths: Sequence[str]) -> list[str]:
    """The last step of each path, or the whole path where two end alike."""
    last = [path.rsplit(".", 1)[-1] for path in paths]
    return [step if last.count(step) == 1 else path for step, path in zip(last, paths, strict=True)]


def slug(value: Any) -> str:
    """A value as part of a name: letters, digits and ._=+,- only."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return re.sub(r"[^A-Za-z0-9._=+,-]+", "_", text).strip("_") or "empty"


def joined(name: str, other: str) -> str:
    """Two names as one, which can be a folder's again; different pairs give different ones."""
    both = f"{name}+{other}"
    if len(both) <= MAX_NAME:
        return both
    mark = hashlib.sha256(both.encode()).hexdigest()[:12]
    return f"{both[: MAX_NAME - len(mark) - 1]}-{mark}"

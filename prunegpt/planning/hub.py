"""What the model hub says without torch: the commit behind a name, and small files. Nothing here needs a network."""

import re
from functools import cache
from pathlib import Path

from prunegpt.builtin import is_builtin
from prunegpt.errors import DataError, ModelError, PruneGPTError

TIMEOUT = 5.0  # seconds
_HEAD = re.compile(r"---\s*\n(.*?)\n---", re.DOTALL)  # of a model card
_LICENSE = re.compile(r"^(license|license_name):[ \t]*(.+?)[ \t]*$", re.MULTILINE)


class Unreachable(PruneGPTError):
    """The hub did not answer and its cache on this machine has no copy."""


@cache
def commit(name: str, revision: str | None, kind: str = "model") -> str:
    """The commit a hub name stands for, from the hub, else from this machine's cache.

    Raises:
        Unreachable: neither knows.
        ModelError, DataError: the hub says that there is no such thing, or it can be no hub name at all.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    if (name, revision, kind) in _commits:
        return str(revision)
    told = ""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        told = _refusal(error, revision)
    if not told and not constants.HF_HUB_OFFLINE and not _silent():
        try:
            info = HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=TIMEOUT)
            _commits.add((name, info.sha, kind))  # a plan names it from here on, and nobody need ask again
            return str(info.sha)
        except Exception as error:  # the hub and the network raise anything
            told = _refusal(error, revision)
            if not told:
                _silence.append(_line(error))
    known = _cached_commit(Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}", revision)
    if known:
        return known
    if told:
        raise (ModelError if kind == "model" else DataError)(
            f"a {kind} must be on the hub or on this machine; {name} is not: {told}. Check the name, log in where it "
            "is private (hf auth login), or give a local folder."
        )
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the hub cannot be reached ({_silence[0]})"
    raise Unreachable(f"{kind} {name}: {why} and its cache holds no copy")


def _cached_commit(folder: Path, revision: str | None) -> str | None:
    try:
        reference = folder / "refs" / (revision or "main")
        if reference.is_file():
            return reference.read_text(encoding="utf-8").strip()
        return revision if revision and (folder / "snapshots" / revision).is_dir() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _refusal(error: Exception, revision: str | None) -> str:
    """Why the hub says that something is not there; empty where it did not answer."""
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision!r}"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub does not show one of that name"
    return "that is no hub name" if isinstance(error, HFValidationError) else ""


@cache
def cached_file(name: str, revision: str | None, file: str, kind: str = "model") -> Path | None:
    """A file of a hub repository: from the cache, else downloaded; None if it is unavailable."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    try:
        known = try_to_load_from_cache(name, file, revision=revision, repo_type=kind)
    except ValueError:  # no hub name
        return None
    if isinstance(known, str):
        return Path(known)
    if constants.HF_HUB_OFFLINE or _silent():
        return None
    try:
        return Path(hf_hub_download(name, file, revision=revision, repo_type=kind, etag_timeout=TIMEOUT))
    except Exception as error:  # as above
        from huggingface_hub.errors import EntryNotFoundError

        if not isinstance(error, EntryNotFoundError):
            _silence.append(_line(error))
        return None


def license_of(source: str, revision: str | None = None) -> str | None:
    """The license that the model card of a hub repository or folder names; None where it names none."""
    folder = Path(source)
    card = folder / "README.md" if folder.is_dir() else cached_file(source, revision, "README.md")
    if is_builtin(source) or card is None or not card.is_file():
        return None
    head = _HEAD.match(card.read_text(encoding="utf-8", errors="replace"))
    found = {name: value.strip("\"' ") for name, value in _LICENSE.findall(head[1])} if head else {}
    return found.get("license_name") or found.get("license") or None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


_commits: set[tuple[str, str | None, str]] = set()  # that the hub has named
_silence: list[str] = []


def _silent() -> bool:
    """One failed connection is enough: the rest of the process does not wait for the same time-out again."""
    return bool(_silence)

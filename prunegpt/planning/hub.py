"""What the model hub says without torch: the commit behind a name, and small files. Nothing here needs a network."""

from functools import cache
from pathlib import Path

from prunegpt.errors import PruneGPTError

TIMEOUT = 5.0  # seconds


class Unreachable(PruneGPTError):
    """The hub did not answer and its cache on this machine has no copy."""


@cache
def commit(name: str, revision: str | None, kind: str = "model") -> str:
    """The commit a hub name stands for, from the hub, else from this machine's cache.

    Raises:
        Unreachable: neither knows.
    """
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE and not _silent():
        try:
            info = HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=TIMEOUT)
            return str(info.sha)
        except Exception as error:
            _note_silence(error)
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    reference = folder / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text(encoding="utf-8").strip()
    if revision and (folder / "snapshots" / revision).is_dir():
        return revision
    raise Unreachable(f"{kind} {name}: the hub cannot be reached and its cache holds no copy")


@cache
def cached_file(name: str, revision: str | None, file: str, kind: str = "model") -> Path | None:
    """A file of a hub repository: from the cache, else downloaded; None where it cannot be had."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    known = try_to_load_from_cache(name, file, revision=revision, repo_type=kind)
    if isinstance(known, str):
        return Path(known)
    if constants.HF_HUB_OFFLINE or _silent():
        return None
    try:
        return Path(hf_hub_download(name, file, revision=revision, repo_type=kind, etag_timeout=TIMEOUT))
    except Exception as error:
        _note_silence(error)
        return None


_silence: list[str] = []


def _silent() -> bool:
    """One failed connection is enough: the rest of the process does not wait for the same time-out again."""
    return bool(_silence)


def _note_silence(error: Exception) -> None:
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    if not isinstance(error, (RepositoryNotFoundError, EntryNotFoundError)):
        _silence.append(str(error))

"""The token of a root: what a visitor must know to change something through its server, and who may read it.

Any account of the machine can reach a port of the loopback address. The token is in a file that the root's owner
alone can read, so that what is asked with it comes from the owner.
"""

import os
import secrets
import stat
from pathlib import Path
from uuid import uuid4

from prunegpt.root import Root

FILE = "serve.token"  # below the root
SHORTEST = 16  # characters of a token
_BYTES = 32


def new_token() -> str:
    """A token of 64 hexadecimal digits; also a W&B key, of which clients drop everything before a hyphen."""
    return secrets.token_hex(_BYTES)


def kept_token(root: Root) -> str | None:
    """The token in the root; None where there is none that this account alone can read."""
    try:
        descriptor = os.open(root.path / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would block
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        own = found.st_uid == os.geteuid() and stat.S_ISREG(found.st_mode)
        read = os.read(descriptor, 1024) if own and not stat.S_IMODE(found.st_mode) & 0o077 else b""
    finally:
        os.close(descriptor)
    token = read.decode("utf-8", "replace").strip()
    return token if len(token) >= SHORTEST and token.isascii() else None


def own_token(root: Root) -> str:
    """The token in the root; a new one is put there where there is none, or where others could read it.

    A root that is not there yet, or that cannot be written, gets none: then the token is new each time.
    """
    if (kept := kept_token(root)) or not root.path.is_dir():
        return kept or new_token()
    token = new_token()
    path = root.path / FILE
    temporary = root.path / f".{FILE}.{uuid4().hex}.tmp"
    try:
        _write(temporary, token)
        try:
            os.link(temporary, path)  # not over the token of a server that starts at the same moment
        except FileExistsError:
            if kept := kept_token(root):
                return kept
            os.replace(temporary, path)  # one that others could read is worth nothing
        finally:
            temporary.unlink(missing_ok=True)
    except OSError:
        return token
    return token


def _write(path: Path, token: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{token}\n")

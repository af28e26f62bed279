"""Runs the application: binds, says where it is, ends well."""

import asyncio
import socket
import webbrowser
from collections.abc import Callable, Sequence
from functools import partial

import uvicorn

from prunegpt.access import SHORTEST, own_token
from prunegpt.errors import LaunchError
from prunegpt.root import Root
from prunegpt.tracking.endpoint.runs import UPLOADS
from prunegpt.web.app import create_app
from prunegpt.web.connections import BACKLOG, BoundedConnection, room
from prunegpt.web.security import is_loopback

_GRACE = 3  # seconds that open connections get at the end


def run(
    root: Root,
    *,
    host: str,
    port: int,
    token: str | None = None,
    hosts: Sequence[str] = (),
    uploads: int = UPLOADS,
    open_browser: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serves a root until it is interrupted.

    Args:
        port: 0 takes a free one.
        token: what visitors must know; where none is given the root's own, without which they may look on loopback.
        hosts: further names that visitors may use.
        uploads: bytes that the uploaded files of one W&B run may take.

    Raises:
        LaunchError: a token that can be guessed, or an address that cannot be listened on.
    """
    if token is not None and len(token) < SHORTEST:
        raise LaunchError(
            f"a token must have {SHORTEST} characters at least, but has {len(token)}. "
            f"Leave --token out: one is generated."
        )
    given = token is not None
    token = token or own_token(root)
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    address = f"http://{_shown(host)}:{port}/"
    reading = not given and is_loopback(host)
    app = create_app(root, token=token, open_to_read=reading, host=host, port=port, hosts=hosts, uploads=uploads)
    config = uvicorn.Config(
        app,
        http=partial(BoundedConnection, most=room()),  # type: ignore[arg-type]  # it is only called
        ws="none",
        backlog=BACKLOG,
        log_level="error",  # a warning tells of what a client sent, as often as it does
        access_log=False,
        timeout_graceful_shutdown=_GRACE,
        server_header=False,
        lifespan="on",
    )
    # Behind the # a browser keeps the token to itself: it stands in no request and in no log.
    link = address if given else f"{address}login#{token}"
    say(f"PruneGPT's dashboard of {root.path}: {link}  (Ctrl-C ends it)")
    if open_browser:
        webbrowser.open(address)  # other accounts see the command of a browser, and with it what it is to open
    try:
        asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))
    except KeyboardInterrupt:
        pass
    finally:
        listening.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        kind, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=kind)
    except OSError as error:
        raise LaunchError(
            f"the dashboard must listen on a free address, but {host}:{port} cannot be had: {error.strerror or error}. "
            f"Take another --port (0 finds one) or --host."
        ) from error


def _shown(host: str) -> str:
    """The host as a URL has it."""
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
    return f"[{name}]" if ":" in name else name

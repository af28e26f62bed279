"""The process of Optuna's dashboard: python -m prunegpt.web.optuna_server ROOT PORT ADDRESS."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prunegpt.root import Root
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.optuna import DATABASE

Environ = dict[str, Any]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

_OWN = ("127.0.0.1", "localhost")


def guarded(app: App) -> App:
    """The app for our own pages only: another host's name, or another origin's request, is refused."""

    def answer(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "")
        origin = environ.get("HTTP_ORIGIN")
        if host.partition(":")[0] in _OWN and origin in (None, f"http://{host}"):
            return app(environ, start)
        start("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"This page is for the address it was started on."]

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        return None


def open_app(root: Root, address: str) -> App:
    """The dashboard over the searches of a root, with links to our pages, which are at an address."""
    from optuna_dashboard import wsgi

    from prunegpt.web.optuna_view import Figures, View

    dashboard = Dashboard.open(root)
    view = View(f"sqlite:///{root.path / DATABASE}", dashboard, address)
    return guarded(wsgi(view, artifact_store=Figures(root.path / "optuna-artifacts", dashboard)))


def _follow(parent: int) -> None:
    """Ends this process when the one that started it has gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def main() -> None:
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    root, port, address = sys.argv[1:]
    app = open_app(Root(Path(root)), address)
    with make_server("127.0.0.1", int(port), app, server_class=_Server, handler_class=_Quiet) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()

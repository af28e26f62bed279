"""The process of Optuna's dashboard: python -m prunegpt.web.optuna_server DATABASE PORT."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

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


def open_app(database: str) -> App:
    """The dashboard over a SQLite file of studies."""
    from optuna.storages import RDBStorage
    from optuna_dashboard import wsgi

    return guarded(wsgi(RDBStorage(f"sqlite:///{database}")))


def _follow(parent: int) -> None:
    """Ends this process when the one that started it has gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def main() -> None:
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    database, port = sys.argv[1:]
    with make_server("127.0.0.1", int(port), open_app(database), server_class=_Server, handler_class=_Quiet) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()

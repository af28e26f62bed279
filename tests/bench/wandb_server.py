"""As much of a W&B server, on the loopback, as `wandb agent` asks for: it hands out runs until there are no more."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SWEEP = "bench0001"


class _Sweep:
    def __init__(self, config: str, program: str, points: list[dict[str, Any]]) -> None:
        self.config = config
        self.program = program
        self.points = points
        self.given: list[float] = []  # when each run was handed out
        self.ended = 0.0

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        sweep = {"id": "U3dlZXA6MQ==", "name": SWEEP, "method": "grid", "state": "RUNNING", "config": self.config}
        if operation == "Viewer":
            return {"viewer": {"id": "1", "entity": "bench", "username": "bench", "email": "", "flags": "{}",
                               "teams": {"edges": []}}}  # fmt: skip
        if operation in ("SweepWithRuns", "GetSweepState"):
            return {"project": {"sweep": {**sweep, "runs": {"edges": []}}}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": "agent"}}}
        if operation == "Heartbeat":
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(self.commands(variables))}}
        return {}

    def commands(self, variables: dict[str, Any]) -> list[dict[str, Any]]:
        """The next run, once the agent says that none runs; the end after the last one."""
        if any(json.loads(variables.get("runState") or "{}").values()):
            return []
        if len(self.given) == len(self.points):
            self.ended = time.perf_counter()
            return [{"type": "exit"}]
        point = self.points[len(self.given)]
        self.given.append(time.perf_counter())
        arguments = {name: {"value": value} for name, value in point.items()}
        return [{"type": "run", "run_id": f"run{len(self.given)}", "program": self.program, "args": arguments}]


@contextmanager
def serving(config: str, program: str, points: list[dict[str, Any]]) -> Iterator[tuple[str, _Sweep]]:
    """Serves a sweep; gives its address and what was handed out.

    Args:
        config: the sweep's YAML.
        program: the script of every run.
        points: the parameters of each run.
    """
    sweep = _Sweep(config, program, points)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            found = re.search(r"(?:query|mutation)\s+(\w+)", body.get("query", ""))
            answer = {"data": sweep.answer(found[1] if found else "", body.get("variables") or {})}
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sweep
    finally:
        server.shutdown()
        thread.join()

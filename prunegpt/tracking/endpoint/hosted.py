"""A W&B sweep that we host: its runs, its agents, and the answers to its agents.

An agent asks every few seconds and says which of its runs are alive. The answer may get lost, so a run is leased:
until there is a sign that it began, the same command is given again; and where an agent falls silent its lease ends.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from pydantic import BaseModel

from prunegpt.root import Root, write_text
from prunegpt.sweep.hyperband import bands, given_up, marks
from prunegpt.tracking.claims import RunStatus

SweepState = Literal["RUNNING", "PAUSED", "FINISHED", "CANCELED"]
RunState = Literal["leased", "running", "finished", "failed", "stopped", "crashed"]
OPEN = ("leased", "running")

SILENT = 300.0  # seconds without a word after which an agent is taken to be gone
_POLL = 4.5  # seconds: an agent that has got its answer does not ask again before
_ANSWERS = 2  # times that a run is given out where runs leave no sign of having begun
_PATIENCE = 5  # the same where they do: one that has still not begun then cannot
_MOST_AGENTS = 1000  # without a run that are known; one more takes the place of the longest silent
_RETRIES = 1  # times that a run whose agent fell silent is given to another
_NAME = re.compile(r"[a-z0-9]{1,32}")  # of a sweep


class HostedRun(BaseModel):
    """One point of the sweep and what became of it."""

    id: str
    args: dict[str, Any]  # as the agent gets them: nested
    values: dict[str, Any]  # path -> value of what is not constant
    agent: str = ""
    state: RunState = "leased"
    answers: int = 0  # times that it was given to its present agent
    lost: int = 0  # agents that fell silent over it
    stop: str = ""  # why it shall end
    metric: float | None = None
    marks: list[float] = []  # of one that has ended: its curve where `early_terminate` compares it


class Agent(BaseModel):
    """A process that asks for runs."""

    id: str
    host: str
    seen: float
    created: float = 0.0
    answered: float = 0.0


class NewPoint(BaseModel):
    """A new point: as the agent gets it, and by path."""

    args: dict[str, Any]
    values: dict[str, Any]


class Hosted(BaseModel):
    """A sweep as it is kept: everything needed to resume after a restart."""

    name: str  # W&B's short id
    entity: str
    project: str
    config: dict[str, Any]
    display: str = ""
    state: SweepState = "RUNNING"
    created: float = 0.0
    runs: list[HostedRun] = []
    agents: dict[str, Agent] = {}
    speaks: bool = False  # its runs leave signs, as ours and all online ones do: one without has not begun

    def run(self, run_id: str) -> HostedRun | None:
        return next((run for run in self.runs if run.id == run_id), None)

    @property
    def goal(self) -> Literal["minimize", "maximize"]:
        return "maximize" if (self.config.get("metric") or {}).get("goal") == "maximize" else "minimize"

    @property
    def sign(self) -> float:
        """What makes lower values of the metric the better ones."""
        return -1.0 if self.goal == "maximize" else 1.0

    @property
    def bands(self) -> list[int]:
        """Lengths of curves at which `early_terminate` compares them."""
        stop = self.config.get("early_terminate") or {}
        options = {name: stop.get(name) for name in ("min_iter", "max_iter", "s")}
        return bands(**options, eta=stop.get("eta", 3)) if stop else []

    @property
    def metric(self) -> str:
        return str((self.config.get("metric") or {}).get("name", "perplexity"))


Command = dict[str, Any]


class AgentHandler:
    """Answers the agents of one sweep.

    Args:
        hosted: what is kept of it; changed in place.
        status: what is known of a run beside what its agent says.
        point: the point after N runs; None where there is none.
    """

    def __init__(
        self, hosted: Hosted, status: Callable[[str], RunStatus], point: Callable[[Hosted], NewPoint | None]
    ) -> None:
        self.hosted = hosted
        self._status = status
        self._point = point

    def register(self, host: str, now: float) -> Agent:
        """A new agent."""
        busy = {run.agent for run in self._open()}
        idle = [one for one in self.hosted.agents.values() if one.id not in busy]
        if len(idle) >= _MOST_AGENTS:
            del self.hosted.agents[min(idle, key=lambda one: one.seen).id]
        agent = Agent(id=secrets.token_hex(8), host=host, seen=now, created=now)
        self.hosted.agents[agent.id] = agent
        return agent

    def heartbeat(self, agent: Agent, alive: Iterable[str], now: float) -> list[Command]:
        """The answer to an agent that has these runs alive."""
        asked_again = now - agent.answered < _POLL and agent.answered > 0
        agent.seen = now
        running = set(alive)
        commands: list[Command] = []
        for run in self._open():
            if run.agent == agent.id:
                commands += self._look(run, running, asked_again)
        self._expire(now)
        self._give_up_early()
        self._settle()
        commands += [{"type": "stop", "run_id": run.id} for run in self._open() if run.agent == agent.id and run.stop]
        if not any(run.agent == agent.id for run in self._open()):
            commands += self._next(agent)
        agent.answered = now
        return commands

    def change(self, state: SweepState) -> None:
        """Stops, cancels, pauses or resumes the sweep."""
        self.hosted.state = state
        if state == "CANCELED":
            for run in self._open():
                run.stop = run.stop or "the sweep was cancelled"

    # -- runs of the agent that asks ------------------------------------------------------------------------------

    def _open(self) -> list[HostedRun]:
        return [run for run in self.hosted.runs if run.state in OPEN]

    def _look(self, run: HostedRun, alive: set[str], asked_again: bool) -> list[Command]:
        if run.id in alive:
            run.state = "running"
            return []
        status = self._status(run.id)
        unseen = run.state == "leased" and not status.started
        self.hosted.speaks = self.hosted.speaks or status.started
        if unseen and (asked_again or run.answers < (_PATIENCE if self.hosted.speaks else _ANSWERS)):
            run.answers += not asked_again  # the client repeats a request whose answer it did not get
            return [self._command(run)]
        broken = self.hosted.speaks if unseen else status.started  # it never spoke, or went without a last word
        self._end(run, status, otherwise="failed" if broken else "finished")
        return []

    def _end(self, run: HostedRun, status: RunStatus, *, otherwise: RunState) -> None:
        ended = status.ended or ("stopped" if run.stop else otherwise)
        run.state = "failed" if ended == "diverged" else ended  # type: ignore[assignment]
        run.metric = status.value
        run.marks = marks(self._signed(status), self.hosted.bands)

    # -- runs of all agents ---------------------------------------------------------------------------------------

    def _expire(self, now: float) -> None:
        """Ends the leases of agents that have fallen silent, unless the run itself still speaks."""
        for run in self._open():
            agent = self.hosted.agents.get(run.agent)
            if agent is None or now - agent.seen < SILENT:
                continue
            status = self._status(run.id)
            if status.ended:
                self._end(run, status, otherwise="finished")
            elif now - status.active >= SILENT:
                run.state, run.lost = "crashed", run.lost + 1

    def _give_up_early(self) -> None:
        stop = self.hosted.config.get("early_terminate")
        growing = self._open()
        if not stop or all(run.stop for run in growing):
            return
        told = given_up(
            [self._signed(self._status(run.id)) for run in growing],
            [run.marks for run in self.hosted.runs if run.state not in (*OPEN, "crashed")],
            lengths=self.hosted.bands,
            eta=stop.get("eta", 3),
            strict=stop.get("strict", True),
        )
        for run, over in zip(growing, told, strict=True):
            if over and not run.stop:
                run.stop = "early_terminate: others were better at this length"

    def _signed(self, status: RunStatus) -> list[float]:
        """Its curve, lower values being the better ones."""
        return [self.hosted.sign * value for value in status.curve]

    def _settle(self) -> None:
        """Finishes a sweep whose metric has reached its target."""
        target = (self.hosted.config.get("metric") or {}).get("target")
        if target is None or self.hosted.state != "RUNNING":
            return
        sign = self.hosted.sign
        if any(run.metric is not None and sign * run.metric <= sign * target for run in self.hosted.runs):
            self.hosted.state = "FINISHED"

    # -- what comes next ------------------------------------------------------------------------------------------

    def _next(self, agent: Agent) -> list[Command]:
        if self.hosted.state == "PAUSED":
            return []
        if self.hosted.state != "RUNNING":
            return [{"type": "exit"}]
        again = next((run for run in self.hosted.runs if run.state == "crashed" and run.lost <= _RETRIES), None)
        if again is not None:
            again.state, again.agent, again.answers = "leased", agent.id, 1
            return [self._command(again)]
        cap = self.hosted.config.get("run_cap")
        point = None if cap is not None and len(self.hosted.runs) >= cap else self._point(self.hosted)
        if point is not None:
            run = HostedRun(id=run_id(), agent=agent.id, answers=1, **dict(point))
            self.hosted.runs.append(run)
            return [self._command(run)]
        if self._open():
            return []  # one of them may have to be run again
        self.hosted.state = "FINISHED"
        return [{"type": "exit"}]

    def _command(self, run: HostedRun) -> Command:
        args = {name: {"value": value} for name, value in run.args.items()}
        return {"type": "run", "run_id": run.id, "program": self.hosted.config.get("program", ""), "args": args}


class SweepFiles:
    """The hosted sweeps of a root: a JSON file each below ROOT/wandb/sweeps. Used by one process, the server's."""

    def __init__(self, root: Root) -> None:
        self._folder = root.path / "wandb" / "sweeps"
        self._known: dict[str, Hosted] = {}

    def get(self, name: str) -> Hosted | None:
        """The sweep of that short id."""
        path = self._folder / f"{name}.json"
        if name not in self._known and _NAME.fullmatch(name) and path.exists():
            self._known[name] = Hosted.model_validate_json(path.read_text(encoding="utf-8"))
        return self._known.get(name)

    def keep(self, hosted: Hosted) -> None:
        """Writes a sweep as it is now."""
        self._known[hosted.name] = hosted
        write_text(self._folder / f"{hosted.name}.json", hosted.model_dump_json(indent=1) + "\n")

    def all(self) -> Iterator[Hosted]:
        """Every sweep, by short id."""
        for path in sorted(self._folder.glob("*.json")):
            if (found := self.get(path.stem)) is not None:
                yield found


def run_id() -> str:
    """Eight lower-case letters and digits, as W&B's own."""
    return "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(8))

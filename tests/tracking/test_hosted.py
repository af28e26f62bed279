"""What agents are told: every point once, whatever answers get lost and whoever falls silent."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.spec.wandb_parameters import KEYS
from prunegpt.tracking.claims import RunStatus
from prunegpt.tracking.endpoint.choose import config_problems, next_point
from prunegpt.tracking.endpoint.hosted import SILENT, Agent, AgentHandler, Hosted, HostedRun

GRID = {"method": "grid", "parameters": {"a": {"values": [1, 2]}, "b": {"parameters": {"c": {"values": ["x", "y"]}}}}}


class World:
    """A handler and the runs that agents were told to start, with a clock of its own."""

    def __init__(self, config: dict[str, Any] | None = None, *, speaks: bool = False) -> None:
        self.hosted = Hosted(name="abc", entity="local", project="p", config=config or GRID, speaks=speaks)
        self.signs: dict[str, RunStatus] = {}
        self.handler = AgentHandler(self.hosted, lambda run: self.signs.get(run, RunStatus()), next_point)
        self.now = 1000.0

    def agent(self) -> Agent:
        return self.handler.register("host", self.now)

    def ask(self, agent: Agent, *alive: str, after: float = 5.0) -> list[dict[str, Any]]:
        self.now += after
        return self.handler.heartbeat(agent, alive, self.now)


def args(command: dict[str, Any]) -> dict[str, Any]:
    return {name: item["value"] for name, item in command["args"].items()}


def test_one_agent_goes_through_a_grid_and_is_sent_home() -> None:
    world = World()
    agent = world.agent()
    seen = []
    commands = world.ask(agent)
    while commands[0]["type"] == "run":
        seen.append(args(commands[0]))
        run = commands[0]["run_id"]
        assert world.ask(agent, run) == []
        commands = world.ask(agent)
    assert seen == [{"a": a, "b": {"c": c}} for a, c in itertools.product([1, 2], ["x", "y"])]
    assert commands == [{"type": "exit"}]
    assert world.hosted.state == "FINISHED"
    assert {run.state for run in world.hosted.runs} == {"finished"}


def test_two_agents_never_get_the_same_point_and_the_first_waits_for_the_last() -> None:
    world = World({"method": "grid", "parameters": {"a": {"values": [1, 2, 3]}}})
    one, two = world.agent(), world.agent()
    (first,), (second,) = world.ask(one), world.ask(two)
    assert args(first) != args(second)
    assert world.ask(one, first["run_id"]) == []
    assert world.ask(two, second["run_id"]) == []
    (third,) = world.ask(one)
    assert args(third) == {"a": 3}
    assert world.ask(two) == []  # it may have to take over
    world.ask(one, third["run_id"])
    assert world.ask(one) == [{"type": "exit"}]
    assert world.ask(two) == [{"type": "exit"}]


def test_a_lost_answer_is_given_again_and_no_run_is_lost_or_doubled() -> None:
    world = World()
    agent = world.agent()
    (first,) = world.ask(agent)
    assert world.ask(agent, after=1.0) == [first]  # the client repeats what it got no answer to
    assert world.ask(agent, after=1.0) == [first]
    assert world.ask(agent, first["run_id"]) == []
    assert len(world.hosted.runs) == 1


def test_a_run_shorter_than_the_poll_is_not_run_again_where_it_left_a_sign() -> None:
    world = World()
    agent = world.agent()
    (first,) = world.ask(agent)
    world.signs[first["run_id"]] = RunStatus(started=True, ended="finished", value=3.0)
    (second,) = world.ask(agent)
    assert second["run_id"] != first["run_id"]
    assert world.hosted.runs[0].state == "finished"
    assert world.hosted.runs[0].metric == 3.0


def test_a_run_that_left_no_sign_is_given_out_twice_at_most() -> None:
    world = World()
    agent = world.agent()
    (first,) = world.ask(agent)
    assert world.ask(agent) == [first]
    (second,) = world.ask(agent)
    assert second["run_id"] != first["run_id"]


def test_a_run_that_cannot_begin_fails_and_the_sweep_goes_on() -> None:
    world = World(speaks=True)
    agent = world.agent()
    told = [world.ask(agent)[0]["run_id"] for _ in range(6)]
    assert len(set(told[:5])) == 1
    assert told[5] != told[0]
    assert world.hosted.runs[0].state == "failed"


def test_a_run_whose_process_died_has_failed() -> None:
    world = World()
    agent = world.agent()
    (first,) = world.ask(agent)
    world.signs[first["run_id"]] = RunStatus(started=True)
    world.ask(agent, first["run_id"])
    world.ask(agent)
    assert world.hosted.runs[0].state == "failed"


def test_the_run_of_a_silent_agent_goes_to_another_once() -> None:
    world = World({"method": "grid", "parameters": {"a": {"values": [1]}}})
    gone = world.agent()
    (first,) = world.ask(gone)
    world.ask(gone, first["run_id"])
    other = world.agent()
    assert world.ask(other, after=SILENT - 10) == []
    assert world.ask(other, after=20) == [first]
    world.ask(other, first["run_id"])
    third = world.agent()
    assert world.ask(third, after=2 * SILENT) == [{"type": "exit"}]
    assert world.hosted.runs[0].state == "crashed"


def test_the_run_of_a_silent_agent_that_still_speaks_is_left_alone() -> None:
    world = World({"method": "grid", "parameters": {"a": {"values": [1]}}})
    gone, other = world.agent(), world.agent()
    (first,) = world.ask(gone)
    world.ask(gone, first["run_id"])
    world.signs[first["run_id"]] = RunStatus(started=True, active=world.now + 2 * SILENT)
    assert world.ask(other, after=2 * SILENT) == []
    world.signs[first["run_id"]] = RunStatus(started=True, ended="finished", value=1.0)
    assert world.ask(other) == [{"type": "exit"}]
    assert world.hosted.runs[0].state == "finished"


def test_pause_stop_cancel_and_resume() -> None:
    world = World()
    agent = world.agent()
    (first,) = world.ask(agent)
    world.handler.change("PAUSED")
    assert world.ask(agent, first["run_id"]) == []
    assert world.ask(agent) == []
    world.handler.change("RUNNING")
    (second,) = world.ask(agent)
    world.handler.change("FINISHED")
    assert world.ask(agent, second["run_id"]) == []  # what runs goes on
    assert world.ask(agent) == [{"type": "exit"}]
    world.handler.change("RUNNING")
    (third,) = world.ask(agent)
    world.ask(agent, third["run_id"])
    world.handler.change("CANCELED")
    stop = {"type": "stop", "run_id": third["run_id"]}
    assert world.ask(agent, third["run_id"]) == [stop]
    assert world.ask(agent, third["run_id"]) == [stop]  # until it has ended
    assert world.ask(agent) == [{"type": "exit"}]
    assert world.hosted.runs[2].state == "stopped"


def test_run_cap_and_target_end_a_sweep() -> None:
    config = {
        "method": "random",
        "parameters": {"a": {"min": 0.0, "max": 1.0}},
        "run_cap": 3,
        "metric": {"name": "loss", "target": 0.5},
    }
    for values, expected in (([1.0, 2.0, 3.0, 4.0], 3), ([1.0, 0.4, 2.0], 2)):
        world = World(config)
        agent = world.agent()
        count = 0
        for value in values:
            (command,) = world.ask(agent)
            if command["type"] == "exit":
                break
            count += 1
            world.signs[command["run_id"]] = RunStatus(started=True, ended="finished", value=value)
        assert count == expected
        assert world.ask(agent) == [{"type": "exit"}]


def test_early_terminate_stops_a_run_that_is_worse_at_a_band() -> None:
    world = World(
        {
            "method": "grid",
            "parameters": {"a": {"values": [1, 2]}},
            "metric": {"name": "loss", "goal": "minimize"},
            "early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 3},
        }
    )
    one, two = world.agent(), world.agent()
    (good,), (bad,) = world.ask(one), world.ask(two)
    world.signs[good["run_id"]] = RunStatus(started=True, curve=[3.0, 1.0])
    world.signs[bad["run_id"]] = RunStatus(started=True, curve=[3.0])
    assert world.ask(two, bad["run_id"]) == []
    world.signs[bad["run_id"]] = RunStatus(started=True, curve=[3.0, 2.5])
    assert world.ask(one, good["run_id"]) == []
    assert world.ask(two, bad["run_id"]) == [{"type": "stop", "run_id": bad["run_id"]}]
    assert world.hosted.runs[1].stop.startswith("early_terminate")
    assert not world.hosted.runs[0].stop


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["ok", "lost", "slow"])), max_size=60), st.integers(1, 7))
def test_whatever_gets_lost_every_point_is_run_exactly_once(script: list[tuple[int, str]], size: int) -> None:
    """Agents whose runs leave signs, as ours and all online ones do; answers are lost at will."""
    world = World({"method": "grid", "parameters": {"a": {"values": list(range(size))}}}, speaks=True)
    agents = [world.agent() for _ in range(3)]
    alive: list[str | None] = [None] * 3
    home = [False] * 3
    started: list[int] = []
    endless = itertools.cycle([(0, "ok"), (1, "ok"), (2, "ok")])
    for who, what in itertools.chain(script, itertools.islice(endless, 6 * size + 12)):
        if home[who]:
            continue
        run = alive[who]
        if run is not None and what != "slow":
            world.signs[run] = RunStatus(started=True, ended="finished", value=1.0)
            alive[who] = run = None
        commands = world.ask(agents[who], *([run] if run else []), after=2.0 if what == "lost" else 5.0)
        if what == "lost":
            continue
        for command in commands:
            if command["type"] == "exit":
                home[who] = True
            else:
                assert alive[who] is None
                started.append(command["args"]["a"]["value"])
                alive[who] = command["run_id"]
                world.signs[command["run_id"]] = RunStatus(started=True)
    assert sorted(started) == list(range(size))
    assert all(home)


def test_bayes_learns_and_imputes_what_failed() -> None:
    config = {
        "method": "bayes",
        "metric": {"name": "loss", "goal": "minimize"},
        "parameters": {
            "x": {"min": -1.0, "max": 1.0},
            "layer": {"values": [1, 2, 3]},
            "noise": {"distribution": "normal", "mu": 0.0, "sigma": 1.0},
        },
        "run_cap": 40,
    }
    world = World(config)
    agent = world.agent()
    losses = []
    for index in range(40):
        (command,) = world.ask(agent)
        found = args(command)
        loss = (found["x"] - 0.5) ** 2 + abs(found["layer"] - 2)
        losses.append(loss)
        failed = index % 7 == 3
        ended = "failed" if failed else "finished"
        world.signs[command["run_id"]] = RunStatus(started=True, ended=ended, value=None if failed else loss)
    assert sum(losses[20:]) < 0.6 * sum(losses[:10]) * 2
    points = {tuple(sorted(run.values.items())) for run in world.hosted.runs}
    assert len(points) == 40


def test_random_points_are_the_same_after_a_restart() -> None:
    hosted = Hosted(
        name="abc", entity="e", project="p", config={"method": "random", "parameters": {"a": {"min": 0.0, "max": 1.0}}}
    )
    again = Hosted.model_validate_json(hosted.model_dump_json())
    first, second = next_point(hosted), next_point(again)
    assert first is not None
    assert first == second


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "grid", "parameters": {"a": {"min": 0.0, "max": 1.0}}}, "a grid needs values"),
        ({"method": "bayes", "parameters": {"a": {"min": 0.0, "max": 1.0}}}, "method bayes needs a metric"),
        ({"method": "custom", "parameters": {"a": {"value": 1}}}, "unknown method 'custom'"),
        ({"method": "grid"}, "parameters must be a mapping"),
    ],
)
def test_a_config_that_cannot_be_hosted_is_refused(config: dict[str, Any], message: str) -> None:
    assert any(message in problem for problem in config_problems(config))


@pytest.mark.parametrize("method", ["bayes", "random"])
@pytest.mark.parametrize("q", [2, 0.3, 1e-4, None])
@pytest.mark.parametrize("distribution", [name for name, (_, may) in KEYS.items() if "q" in may])
def test_every_method_draws_multiples_of_q(distribution: str, q: float | None, method: str) -> None:
    ends = {"min": 1.1, "max": 9.7} if "min" in KEYS[distribution][0] else {}
    spec = {"distribution": distribution, **ends, **({} if q is None else {"q": q})}
    config = {"method": method, "metric": {"name": "loss"}, "parameters": {"a": spec}}
    assert config_problems(config) == []
    hosted = Hosted(name="abc", entity="local", project="p", config=config)
    step = 1.0 if q is None else q
    for number in range(12):
        point = next_point(hosted)
        assert point is not None
        value = point.values["a"]
        assert value == pytest.approx(round(value / step) * step, abs=1e-12)
        assert q is None or isinstance(value, type(q))
        run = HostedRun(id=str(number), args=point.args, values=point.values, state="finished", metric=abs(value - 4))
        hosted.runs.append(run)

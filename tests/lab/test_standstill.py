"""An agent whose threads stand still says so, and is well again when they go on."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from deploy.lab.cluster import Lab
from tests.halting import halted, threads
from tests.lab.objects import namespace, node, pod, service
from tests.lab.offender import Agent
from tests.lab.talk import SERVER, reaches, until

CLUSTER = (
    namespace("mesh", ambient=True, direct=False)
    + node("n1")
    + node("n2")
    + service("server", "mesh")
    + pod("server", "mesh", "n2", SERVER)
    + pod("client", "mesh", "n1")
)


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(CLUSTER)


def answer(lab: Lab, url: str) -> str:
    """Of the agent of n2."""
    return lab.exec("node/n2", ["curl", "-sS", "-m", "20", f"http://127.0.0.1:{url}"], check=True).stdout


def test_an_agent_whose_threads_are_stuck_says_so(lab: Lab) -> None:
    agent = Agent(lab=lab, node="n2")
    assert reaches(lab, "client")
    assert answer(lab, "15021/healthz/live") == "alive\n"
    reached: list[bool] = []
    caller = threading.Thread(target=lambda: reached.append(reaches(lab, "client")))
    with ExitStack() as stopped:
        for name in threads(agent.pid):
            if name.startswith("pump-"):
                stopped.enter_context(halted(agent.pid, name))
        caller.start()
        until(lambda: answer(lab, "15021/healthz/live").startswith("stuck: pump-"))
        assert re.match(r"not ready, pending: thread pump-\d, which is stuck", answer(lab, "15021/healthz/ready"))
        assert re.search(r"^gossamer_stuck_threads [1-9]", answer(lab, "15020/metrics"), re.M)
        assert re.search(r"thread pump-\d is stuck", agent.log)
    until(lambda: answer(lab, "15021/healthz/live") == "alive\n")
    assert answer(lab, "15021/healthz/ready") == "ready\n"
    caller.join(60)
    assert reached, "who called meanwhile was answered, one way or the other"
    assert reaches(lab, "client")
    assert "gossamer_stuck_threads 0\n" in answer(lab, "15020/metrics")

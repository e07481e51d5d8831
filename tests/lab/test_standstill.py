"""An agent whose threads stand still says so, goes on deciding, and is well again when they go on."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from deploy.lab.agents import ask_socket, controller_socket
from deploy.lab.cluster import Lab
from deploy.lab.manifest import Key
from tests.halting import halted, threads
from tests.lab.objects import namespace, node, pod, service
from tests.lab.offender import Agent
from tests.lab.talk import SERVER, applied, ask, reaches, until

CLUSTER = (
    namespace("mesh", ambient=True, direct=False)
    + node("n1")
    + node("n2")
    + service("server", "mesh")
    + pod("server", "mesh", "n2", SERVER)
    + pod("client", "mesh", "n1")
)
DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-client, namespace: mesh}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]}]
"""
DENY_KEY = Key("AuthorizationPolicy", "mesh", "deny-client")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(CLUSTER)


def answer(lab: Lab, url: str) -> str:
    """Of the agent of n2."""
    return lab.exec("node/n2", ["curl", "-sS", "-m", "20", f"http://127.0.0.1:{url}"], check=True).stdout


@contextmanager
def stuck(agent: Agent) -> Iterator[None]:
    with ExitStack() as stopped:
        for name in threads(agent.pid):
            if name.startswith("pump-"):
                stopped.enter_context(halted(agent.pid, name))
        yield


def known(lab: Lab) -> dict[str, Any]:
    """To the controller, of n2."""
    status = ask_socket(controller_socket(lab.layout), "/status")
    (found,) = [node for node in status["nodes"] if node["name"] == "n2"]
    return dict(found)


def test_a_policy_of_which_stuck_threads_cannot_be_told_is_in_force_and_not_acknowledged(lab: Lab) -> None:
    until(lambda: reaches(lab, "client"))
    agent = Agent(lab=lab, node="n2")
    until(lambda: known(lab)["acknowledged"] == known(lab)["sent"])
    with ExitStack() as meanwhile:
        with stuck(agent):
            before = known(lab)["acknowledged"]
            meanwhile.enter_context(applied(lab, DENY, DENY_KEY))
            until(lambda: [p["name"] for p in ask(lab, "n2", "/policies")["policies"]] == ["deny-client"])
            assert answer(lab, "15021/healthz/live"), "the agent answers"
            found = known(lab)
            assert found["acknowledged"] == before < found["sent"]
        until(lambda: known(lab)["acknowledged"] > before)
        assert not reaches(lab, "client")
    until(lambda: reaches(lab, "client"))


def test_an_agent_whose_threads_are_stuck_says_so(lab: Lab) -> None:
    agent = Agent(lab=lab, node="n2")
    assert reaches(lab, "client")
    assert answer(lab, "15021/healthz/live") == "alive\n"
    reached: list[bool] = []
    caller = threading.Thread(target=lambda: reached.append(reaches(lab, "client")))
    with stuck(agent):
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

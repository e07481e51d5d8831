"""The table of policy (tests/policy_cases.yaml) in the kernel's maps: real connections between pods of one node, with
nobody there who could decide. Who is allowed gets through; everybody else is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bpf import Kernel
from mesh import direct
from mesh.direct import Key, Plan
from mesh.snapshot import Snapshot
from tests import policy_cases
from tests.kernel.rig import Rig, Worker, enrol
from tests.policy_cases import CASES, NAMESPACES, OUTSIDE, PORTS, Addresses, Case, Flow, instance

LISTENING = [(name, port) for name in ("server", "second") for port in PORTS]


@dataclass(kw_only=True)
class Node:
    """The pods of the table; `plan` is what its kernel was told last."""

    kernel: Kernel
    addresses: Addresses
    workers: dict[str, Worker]
    listeners: dict[tuple[str, int], int]
    plan: Plan | None = None

    def told(self, case: Case) -> None:
        """As the agent tells it, asking for every flow of the case."""
        snapshot = policy_cases.snapshot(case, self.addresses)
        captured = {w.instance: w for w in snapshot.workloads.values() if w.capture}
        made = direct.plan(snapshot, captured, before=self.plan)
        step = direct.change(self.plan, made)
        if step.revoking:
            assert self.kernel.switch(made.targets, step.entries) == 0
        elif step.targets:
            self.kernel.set_targets(made.targets)
        fresh = () if step.revoking else step.entries
        assert self.kernel.put_verdicts([*fresh, *self._asked(snapshot, made, case)]) == 0
        self.plan = made

    @staticmethod
    def _asked(snapshot: Snapshot, made: Plan, case: Case) -> Iterator[direct.VerdictEntry]:
        for flow in case.flows:
            key = Key(instance(flow.source), instance(flow.destination), flow.port)
            entry = direct.ask(snapshot, made, key)
            if entry is not None:
                made.entries[key] = entry
                yield entry

    def passes(self, flow: Flow) -> bool:
        """Whether the application at the other end gets the connection, from the address of its source."""
        source, destination = self.workers[flow.source], self.workers[flow.destination]
        try:
            client = source.dial(self.addresses[flow.destination][flow.family], flow.port)
        except ConnectionRefusedError:
            return False
        accepted, peer = destination.accept(self.listeners[flow.destination, flow.port])
        assert peer[0].removeprefix("::ffff:") == self.addresses[flow.source][flow.family]
        source.close(client)
        destination.close(accepted)
        return True


@pytest.fixture
def node(rig: Rig) -> Node:
    kernel = rig.kernel(direct=True)
    pods = {name: rig.add_pod() for name in NAMESPACES}
    workers = {name: rig.worker("pods", pod) for name, pod in pods.items()}
    listeners = {(name, port): workers[name].listen("::", port, dual=True)[0] for name, port in LISTENING}
    for name, pod in pods.items():
        if name != OUTSIDE:
            enrol(kernel, pod, instance=instance(name))
    addresses = {name: (pod.ip4, pod.ip6) for name, pod in pods.items()}
    return Node(kernel=kernel, addresses=addresses, workers=workers, listeners=listeners)


def test_the_table(node: Node) -> None:
    """Case after case, without a pause: an answer of the one before would be seen. Plaintext is the agent's to judge,
    and so is who is allowed over one of its addresses only."""
    for case in CASES:
        node.told(case)
        for flow in case.flows:
            expected = flow.source != OUTSIDE and case.whole(flow)
            assert node.passes(flow) is expected, (case.name, flow)

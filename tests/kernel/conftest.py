"""Fixtures: a rig per module, so that what a module's tests leave behind is seen by its last one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bpf import Kernel
from tests.kernel.rig import AgentListeners, Pod, Rig, Worker, enrol


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/kernel/" in str(item.path):
            item.add_marker(pytest.mark.kernel)


@pytest.fixture
def rig() -> Iterator[Rig]:
    assert os.geteuid() == 0, "the kernel tests need root"
    rig = Rig()
    try:
        rig.up()
        yield rig
    finally:
        rig.down()


@pytest.fixture
def kernel(rig: Rig) -> Kernel:
    return rig.kernel()


@pytest.fixture
def pod(rig: Rig) -> Pod:
    return rig.add_pod()


@pytest.fixture
def listeners(kernel: Kernel, pod: Pod) -> Iterator[AgentListeners]:
    """`pod` is enrolled, with these."""
    listeners = AgentListeners(pod)
    enrol(kernel, pod, listeners)
    yield listeners
    listeners.close()


@pytest.fixture
def app(rig: Rig, pod: Pod) -> Worker:
    """A process of the pod."""
    return rig.worker("pods", pod)


@pytest.fixture
def host(rig: Rig) -> Worker:
    """Another process of the node: an ordinary peer."""
    return rig.worker("host", rig.node)


@pytest.fixture
def agent(rig: Rig) -> Worker:
    return rig.worker("agent", rig.node)


@pytest.fixture
def kubelet(rig: Rig) -> Worker:
    return rig.worker("kubelet", rig.node)

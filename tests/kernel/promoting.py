"""What the agent does for acceleration, in a test: promote the flows whose ends never wait."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from bpf import DirectBarred, DirectDrained, DirectReady, Kernel, Outcome
from bpf.layouts import METER
from tests.kernel.rig import Pod, Worker


class Promoter:
    """Reads the kernel's events: those that are not for it are kept in `others`."""

    def __init__(self, kernel: Kernel, descriptors: dict[int, int]) -> None:
        self.kernel, self._descriptors = kernel, descriptors
        self.others: list[Any] = []
        self.outcomes: list[Outcome] = []
        self.barred: list[DirectBarred] = []

    def look(self) -> list[Outcome]:
        """What became of those that were ready."""
        found = []
        for event in self.kernel.events().read():
            if isinstance(event, DirectDrained):
                sender = event.destination if event.at_client else event.source
                self.kernel.nudge(event, at_sender=self._descriptors[sender])
            if isinstance(event, DirectBarred):
                self.barred.append(event)
                self.kernel.promoter.close_lanes(event.destination, event.client, event.server)
            if not isinstance(event, DirectReady):
                self.others.append(event)
                continue
            found.append(
                self.kernel.promoter.promote(
                    event.destination,
                    event.client,
                    event.server,
                    at_source=self._descriptors[event.source],
                    at_destination=self._descriptors[event.destination],
                )
            )
        self.outcomes += found
        return found

    def during(self, *workers: Worker) -> list[Any]:
        """The results of what the workers have begun, promoting meanwhile."""
        for worker in workers:
            while not worker.answered(0.002):
                self.look()
        self.look()
        return [worker.finish() for worker in workers]

    def demote(self) -> Outcome:
        """The flow that was barred last."""
        time.sleep(0.1)  # what the promoter asks for
        flow = self.barred[-1]
        return self.kernel.promoter.demote(flow.destination, flow.client, flow.server)

    def redirected(self) -> list[int]:
        """Bytes redirected to each socket that has a meter, in no order."""
        return sorted(METER.unpack(value)[3] for _, value in self.kernel._maps["consumed"].items())


@contextmanager
def promoter(kernel: Kernel, *pods: Pod) -> Iterator[Promoter]:
    with ExitStack() as held:
        descriptors = {}
        for pod in pods:
            fd = os.open(pod.netns, os.O_RDONLY)
            held.callback(os.close, fd)
            descriptors[pod.cookie] = fd
        yield Promoter(kernel, descriptors)


def chat(app: Worker, server: Worker, client: int, accepted: int, times: int = 20) -> None:
    """Small messages there and back; a worker's receives do not wait: a timeout is poll()."""
    for _ in range(times):
        for one, number, other, peer in ((app, client, server, accepted), (server, accepted, app, client)):
            one.send(number, b"ping")
            assert other.recv(peer) == b"ping"


def promoted(made: Promoter, app: Worker, server: Worker, client: int, accepted: int) -> None:
    """Bytes go from socket to socket afterwards, both ways."""
    for _ in range(50):
        chat(app, server, client, accepted)
        if Outcome.PROMOTED in made.look():
            break
    before = sum(made.redirected())
    chat(app, server, client, accepted, 2)
    chat(app, server, client, accepted, 1)
    assert sum(made.redirected()) > before, "they do not"

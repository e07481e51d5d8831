"""What admin and metrics read of the running agent: never changed through it, and no secret can be reached from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from bpf.facts import Description
from mesh.control import Redirection
from mesh.model import SocketAddress
from mesh.reason import Reason
from mesh.snapshot import Snapshot
from ztunnel.certificates import CertificateView
from ztunnel.connections import Connection


class Pod(Protocol):
    """A pod of this node that is, was or shall be enrolled."""

    @property
    def instance(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def redirection(self) -> Redirection: ...
    @property
    def error(self) -> str: ...


class OlderConnection(Protocol):
    """A connection that its pod had before it was enrolled: not steered, not encrypted."""

    @property
    def pod(self) -> str: ...  # instance
    @property
    def inbound(self) -> bool: ...
    @property
    def local(self) -> SocketAddress: ...
    @property
    def remote(self) -> SocketAddress: ...


class Controller(Protocol):
    """The stream from the controller. `error` is of the last attempt that failed."""

    @property
    def address(self) -> str: ...
    @property
    def connected(self) -> bool: ...
    @property
    def synced(self) -> bool: ...  # a first full state has been applied since the agent started
    @property
    def error(self) -> str: ...
    @property
    def updates(self) -> int: ...  # received since the agent started
    @property
    def terminations(self) -> int: ...  # streams that were up and ended


class AgentView(Protocol):
    """The agent, as its admin endpoints, metrics and readiness see it. Reading it changes nothing."""

    @property
    def node(self) -> str: ...
    @property
    def node_ip(self) -> str: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def snapshot(self) -> Snapshot: ...
    @property
    def controller(self) -> Controller: ...

    def pending(self) -> Sequence[str]:
        """What readiness still waits for, in words; empty: ready."""

    def stuck(self) -> Sequence[str]:
        """Threads that have something to do and do not get on: only a new start helps."""

    def pods(self) -> Sequence[Pod]: ...
    def certificates(self) -> Sequence[CertificateView]: ...
    def connections(self) -> Sequence[Connection]: ...
    def older(self) -> Sequence[OlderConnection]: ...

    def counts(self) -> Mapping[int, tuple[int, int]]:
        """As `Engine.counts`."""

    def refused(self) -> Mapping[Reason, int]:
        """As `Engine.refused`."""

    def kernel(self) -> Description:
        """Asked from a thread of its own: counting entries of large maps takes time. OSError if it cannot be read."""

    def kernel_counters(self) -> Mapping[Reason, int]: ...
    def kernel_losses(self) -> tuple[int, int]:
        """Events that the kernel side had no room for, and permissions of direct connections."""

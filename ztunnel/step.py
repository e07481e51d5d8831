"""What one pod's enrolment needs next: pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from mesh.identity import SpiffeId
from mesh.model import NetworkMode, Workload
from ztunnel.pods import PodRecord


class Step(Enum):
    REST = auto()
    ENTER = auto()
    AWAIT_CERTIFICATE = auto()
    LEAVE = auto()
    REENTER = auto()
    GO = auto()  # the pod was deleted


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What an enrolment was made for; another one is another enrolment."""

    record: PodRecord
    identity: SpiffeId
    addresses: tuple[str, ...]

    @classmethod
    def of(cls, record: PodRecord, workload: Workload) -> Shape:
        return cls(record=record, identity=workload.identity, addresses=workload.addresses)


def step(
    record: PodRecord | None,
    workload: Workload | None,
    *,
    inside: Shape | None,
    adopted: bool,
    certified: bool,
) -> Step:
    """What one pod needs next. `inside`: what it is enrolled as, `adopted`: an earlier agent enrolled it and this one
    has not yet taken over, `certified`: there is a certificate for its identity."""
    if record is None:
        return Step.GO
    if workload is None:
        return Step.REST  # enrolled or not, it stays so: nothing is opened for want of knowledge
    if not workload.capture or workload.network_mode is NetworkMode.HOST_NETWORK:
        return Step.LEAVE if inside is not None or adopted else Step.REST
    if not workload.addresses:
        return Step.REST
    shape = Shape.of(record, workload)
    if inside == shape:
        return Step.REST
    if inside is not None:
        return Step.REENTER
    return Step.ENTER if certified or adopted else Step.AWAIT_CERTIFICATE

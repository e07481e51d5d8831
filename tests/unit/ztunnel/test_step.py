"""What a pod's enrolment needs next, as a table."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from mesh.model import NetworkMode, Workload
from ztunnel.pods import PodRecord
from ztunnel.step import Shape, Step, step

RECORD = PodRecord(instance="i", namespace="shop", name="p", netns="/run/netns/p")
PLAIN = Workload(uid="u", name="p", namespace="shop", instance="i", addresses=("10.0.0.1",))
WANTED = replace(PLAIN, capture=True)
SHAPE = Shape.of(RECORD, WANTED)


@pytest.mark.parametrize(
    ("record", "workload", "inside", "adopted", "certified", "expected"),
    [
        (None, WANTED, SHAPE, False, True, Step.GO),
        (None, None, None, False, False, Step.GO),
        (RECORD, None, None, False, False, Step.REST),
        (RECORD, None, SHAPE, False, True, Step.REST),
        (RECORD, None, None, True, True, Step.REST),
        (RECORD, PLAIN, None, False, True, Step.REST),
        (RECORD, PLAIN, SHAPE, False, True, Step.LEAVE),
        (RECORD, PLAIN, None, True, False, Step.LEAVE),
        (RECORD, WANTED, None, False, False, Step.AWAIT_CERTIFICATE),
        (RECORD, WANTED, None, False, True, Step.ENTER),
        (RECORD, WANTED, None, True, False, Step.ENTER),
        (RECORD, WANTED, SHAPE, False, True, Step.REST),
        (RECORD, WANTED, SHAPE, False, False, Step.REST),
        (RECORD, replace(WANTED, addresses=("10.0.0.2",)), SHAPE, False, True, Step.REENTER),
        (RECORD, replace(WANTED, service_account="other"), SHAPE, False, True, Step.REENTER),
        (RECORD, replace(WANTED, trust_domain="other"), SHAPE, False, True, Step.REENTER),
        (msgspec.structs.replace(RECORD, netns="/run/netns/q"), WANTED, SHAPE, False, True, Step.REENTER),
        (RECORD, replace(WANTED, addresses=()), None, False, True, Step.REST),
        (RECORD, replace(WANTED, network_mode=NetworkMode.HOST_NETWORK), None, False, True, Step.REST),
        (RECORD, replace(WANTED, network_mode=NetworkMode.HOST_NETWORK), SHAPE, False, True, Step.LEAVE),
        (RECORD, replace(WANTED, node="n", capacity=7), SHAPE, False, True, Step.REST),
    ],
)
def test_step(
    record: PodRecord | None,
    workload: Workload | None,
    inside: Shape | None,
    adopted: bool,
    certified: bool,
    expected: Step,
) -> None:
    assert step(record, workload, inside=inside, adopted=adopted, certified=certified) is expected

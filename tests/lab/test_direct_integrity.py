"""Direct connections under load: whole, or an error after an exact prefix; policy and agents come and go meanwhile."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

import pytest

from deploy.lab.cluster import Lab
from deploy.soak import peer
from tests.lab.objects import namespace, node, pod
from tests.lab.talk import ask, until
from tests.lab.test_direct import ON, POLICY
from tests.lab.test_integrity import (
    ENDED,
    EXCHANGE,
    FIRST,
    FLOWING,
    SERVE,
    Talks,
    addresses,
    of_every_kind,
    served,
    talking,
    to,
)

CLUSTER = (
    namespace("mesh", ambient=True)
    + node("n1")
    + pod("server", "mesh", "n1", command=SERVE)
    + pod("client", "mesh", "n1", command=SERVE)
)
NOBODY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: policy, namespace: mesh}
spec:
  action: DENY
  rules:
    - from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]
"""
SEVERED = {"ECONNRESET", "ECONNABORTED", "EPIPE"}


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(CLUSTER)
    made.restart_agent("n1", arguments=ON)
    until(lambda: direct(made))
    return made


def protocols(lab: Lab) -> list[str]:
    return [c["protocol"] for c in ask(lab, "n1", "/connections")["connections"]]


def direct(lab: Lab) -> bool:
    """Whether new connections are; not those that a policy refuses still."""
    with talking(lab, "client", [to(addresses(lab, "server")[0], down=peer.ENDLESS)]) as talks:
        assert talks.process.stdout is not None
        if json.loads(talks.process.stdout.readline())["event"] != FLOWING:
            return False
        until(lambda: len(protocols(lab)) == 2)
        found = set(protocols(lab))
    until(lambda: not protocols(lab))
    return found == {"DIRECT"}


def severed(lab: Lab, talks: Talks) -> None:
    """Each one ended in an error at both ends, after an exact prefix."""
    talks.until(ENDED)
    until(lambda: len(served(lab, "server", set(talks.specs))) == len(talks.specs))
    for seed, theirs in served(lab, "server", set(talks.specs)).items():
        for got in (talks.result[seed], theirs):
            assert got["exact"], got
            assert got["errors"], got
            assert set(got["errors"]) <= SEVERED, got


@pytest.mark.parametrize("acceleration", ["off", "on"])
def test_200_connections_are_byte_exact(lab: Lab, acceleration: str) -> None:
    lab.restart_agent("n1", arguments=(*ON, "--direct-acceleration", acceleration))
    until(lambda: direct(lab))
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)

    def size() -> int:
        return rng.choice([0, 1, 16 << 10, 256 << 10, rng.randrange(64 << 10)])

    specs = [
        to(addresses(lab, "server")[number % 2], EXCHANGE if number % 4 < 2 else FIRST, up=size(), down=size())
        for number in range(200)
    ]
    with talking(lab, "client", specs) as talks:
        talks.check_whole()
    for spec in specs:
        got = served(lab, "server", {spec["seed"]})[spec["seed"]]
        assert got["exact"] and got["eof"] and not got["errors"] and got["got"] == spec["up"], (got, spec)
    lab.restart_agent("n1", arguments=ON)


def test_what_loses_its_permission_ends_in_an_error_at_both_ends_whatever_it_does(lab: Lab) -> None:
    for _ in range(3):
        until(lambda: direct(lab))
        with talking(lab, "client", of_every_kind(lab, "server")) as talks:
            talks.until(FLOWING)
            until(lambda: protocols(lab).count("DIRECT") == 2 * len(talks.specs))
            began = time.monotonic()
            lab.apply({"policy.yaml": NOBODY})
            try:
                severed(lab, talks)
                print(f"revoked and noticed at both ends within {time.monotonic() - began:.3f} s")
            finally:
                lab.delete([POLICY])


def test_the_agent_may_die_and_come_back(lab: Lab) -> None:
    until(lambda: direct(lab))
    ips = addresses(lab, "server")
    endless = [to(ip, up=peer.ENDLESS, down=peer.ENDLESS) for ip in ips]
    held = [to(ip, up=300 << 10, down=8 << 20, hold=True) for ip in ips for _ in range(4)]
    short = [to(ip, mode, up=20_000, down=20_000) for ip in ips for mode in (EXCHANGE, FIRST) for _ in range(8)]

    def listed() -> bool:
        return protocols(lab).count("DIRECT") == 2 * len(endless + held)

    with talking(lab, "client", held) as talks, talking(lab, "client", endless) as busy:
        busy.until(FLOWING)
        until(listed)
        lab.kill_agent("n1")
        try:
            with talking(lab, "client", short) as new:
                new.check_whole()
        finally:
            lab.restart_agent("n1", arguments=ON)
        until(listed)
        talks.release()
        talks.check_whole()
    until(lambda: not protocols(lab))


def test_nobody_stumbled(lab: Lab) -> None:
    """After all of the above."""
    assert "Traceback" not in lab.logs("node/n1").read_text()

"""Policies under dry run: one count per connection and outcome, by whoever decided, as long as the policy is there."""

from __future__ import annotations

from mesh.model import Policy, PolicyAction, PolicyScope
from mesh.policy import Trial
from mesh.reason import Reason
from mesh.snapshot import Delta
from tests.unit.ztunnel.small_agent import SNAPSHOT, SmallAgent, inbound, outbound
from ztunnel.metrics.trials import Trials

DENIES, MISSES = Trial("default/d", "deny"), Trial("default/a", "not allow")


def counted(trials: Trials) -> dict[tuple[str, str], float]:
    return {(s.labels["policy"], s.labels["outcome"]): s.value for s in trials.collect().samples}


def watched() -> tuple[SmallAgent, Trials]:
    agent, trials = SmallAgent(), Trials()
    agent.table.subscribe(trials)
    return agent, trials


def test_each_connection_counts_once_at_its_destination() -> None:
    agent, trials = watched()
    for number in (1, 2):
        agent.end(agent.open(inbound(number, trials=(DENIES, MISSES))))
    agent.end(agent.open(outbound(3, trials=(DENIES,))))  # the other report of a direct one
    refused = inbound(4, trials=(MISSES,), reason=Reason.POLICY_NO_ALLOW)
    agent.table.begin(refused)
    agent.end(refused)
    assert counted(trials) == {("default/d", "deny"): 2, ("default/a", "not_allow"): 3}


def test_those_that_were_over_before_anybody_looked_count_too() -> None:
    _, trials = watched()
    trials.passed(inbound(1, trials=(DENIES,)), [])
    trials.passed(inbound(1, trials=(DENIES,)), [inbound(), inbound(), inbound()])
    assert counted(trials) == {("default/d", "deny"): 3}


def test_a_policy_that_is_gone_or_in_force_is_forgotten() -> None:
    agent, trials = watched()
    agent.open(inbound(1, trials=(DENIES, MISSES)))
    policy = Policy(name="d", namespace="default", scope=PolicyScope.NAMESPACE, action=PolicyAction.DENY, dry_run=True)
    trials.expire(SNAPSHOT.apply(Delta(upserts=(policy,))))
    assert counted(trials) == {("default/d", "deny"): 1}
    trials.expire(SNAPSHOT)
    assert counted(trials) == {}

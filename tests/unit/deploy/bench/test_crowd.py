"""A full node's objects are what they say: accepted by the translation, every policy selecting one pod."""

from __future__ import annotations

import json

from controller.sources.files import Files
from controller.translate.settings import Settings
from controller.translate.snapshot import translate
from deploy.bench.crowd import Crowd, allow


def test_the_controller_takes_all_of_it_and_each_pod_has_its_share() -> None:
    crowd = Crowd(pods=30, policies=120)
    objects = [*crowd.namespaces()]
    for pod in range(crowd.pods):
        objects += crowd.neighbourhood(pod, uid=f"u-{pod}", node="n1", node_ip="10.0.0.1", address=f"10.1.0.{pod + 2}")
    objects += [crowd.policy(number) for number in range(crowd.policies)]
    files = Files()
    assert files.put("all.yaml", "---\n".join(json.dumps(one) + "\n" for one in objects).encode())
    made = translate(files.objects(), enrolled=frozenset(), settings=Settings())
    kinds = [key.partition("/")[0] for key in made.entries]
    assert (kinds.count("workload"), kinds.count("policy"), kinds.count("service")) == (30, 120, 30)


def test_the_callers_of_a_pod_are_all_different_and_others() -> None:
    crowd = Crowd()
    for pod in (0, 7, 249):
        callers = [one for number in range(pod, crowd.policies, crowd.pods) for one in crowd.callers(number)]
        assert len(set(callers)) == len(callers) == 16
        assert pod not in callers
    assert crowd.permitted == 4000


def test_principals_wrap_around() -> None:
    crowd = Crowd(pods=20)
    assert crowd.principal(23) == crowd.principal(3) == "cluster.local/ns/crowd-3/sa/pod-3"
    assert allow("a", "crowd-3", 3, [crowd.principal(1)])["spec"]["selector"] == {"matchLabels": {"app": "pod-3"}}

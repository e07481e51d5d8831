"""From objects there are and objects wanted to what is put and deleted."""

from __future__ import annotations

import random

import pytest

from deploy.lab.fault import LabError
from deploy.lab.layout import POD_LIMIT, Layout
from deploy.lab.manifest import Key, Object, key_of, parse
from deploy.lab.plan import Plan, plan_apply, plan_delete, pods_of

LAYOUT = Layout(name="x", slot=0)


class Cluster:
    """Applies plans to a mapping."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.rng = random.Random(1)

    def apply(self, text: str) -> Plan:
        wanted = parse(text, "f")
        plan = plan_apply(self.objects, wanted, layout=LAYOUT, now="2030-01-01T00:00:00Z", rng=self.rng)
        for key in plan.delete:
            del self.objects[key]
        self.objects |= {key_of(item): item for item in plan.put}
        return plan

    def pod(self, name: str) -> Object:
        return self.objects[Key("Pod", "default", name)]


def pod(name: str, spec: str = "") -> str:
    head = f"---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n"
    return f"{head}spec: {{{spec} containers: [{{name: c, command: [x]}}]}}\n"


def service(name: str, spec: str = "") -> str:
    return f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec} ports: [{{port: 80}}]}}\n"


def deployment(replicas: int = 2, command: str = "x") -> str:
    return f"""---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: d}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: d}}}}
  template: {{metadata: {{labels: {{app: d}}}}, spec: {{containers: [{{name: c, command: [{command}]}}]}}}}
"""


def test_two_nodes_and_the_usual_namespaces_come_by_themselves() -> None:
    cluster = Cluster()
    cluster.apply(pod("a"))
    assert {key.name for key in cluster.objects if key.kind == "Node"} == {"n1", "n2"}
    assert {key.name for key in cluster.objects if key.kind == "Namespace"} == {
        "default",
        "kube-system",
        "istio-system",
    }
    node = cluster.objects[Key("Node", "", "n2")]
    assert node["spec"]["podCIDR"] == "10.10.1.0/24"
    assert node["metadata"]["labels"]["kubernetes.io/hostname"] == "n2"


def test_a_pod_gets_node_addresses_uid_and_defaults() -> None:
    cluster = Cluster()
    cluster.apply(pod("a", "nodeName: n2,"))
    made = cluster.pod("a")
    assert made["status"]["podIPs"] == [{"ip": "10.10.1.2"}, {"ip": "fd67:6d00:0:1::2"}]
    assert made["status"]["hostIP"] == "10.130.0.11"
    assert made["status"]["phase"] == "Pending"
    assert made["spec"]["serviceAccountName"] == "default"
    assert len(made["metadata"]["uid"]) == 36
    assert made["metadata"]["creationTimestamp"] == "2030-01-01T00:00:00Z"


def test_pods_without_a_node_go_where_the_fewest_are() -> None:
    cluster = Cluster()
    cluster.apply(pod("a", "nodeName: n1,") + pod("b") + pod("c") + pod("d"))
    assert [cluster.pod(name)["spec"]["nodeName"] for name in "abcd"] == ["n1", "n2", "n1", "n2"]


def test_addresses_are_used_again_and_run_out_with_a_word() -> None:
    cluster = Cluster()
    cluster.apply(pod("a", "nodeName: n1,") + pod("b", "nodeName: n1,"))
    del cluster.objects[Key("Pod", "default", "a")]
    cluster.apply(pod("c", "nodeName: n1,"))
    assert cluster.pod("c")["status"]["podIP"] == "10.10.0.2"
    with pytest.raises(LabError, match=f"node n1 holds {POD_LIMIT} pods already"):
        cluster.apply("".join(pod(f"x{n}", "nodeName: n1,") for n in range(POD_LIMIT)))


def test_host_network_pods_have_the_node_s_addresses() -> None:
    cluster = Cluster()
    cluster.apply(pod("a", "nodeName: n1, hostNetwork: true,"))
    assert cluster.pod("a")["status"]["podIPs"] == [{"ip": "10.130.0.10"}, {"ip": "fd67:6d00:0:ff00::a"}]


def test_nothing_changes_when_nothing_changed() -> None:
    cluster = Cluster()
    text = pod("a") + service("s", "ipFamilyPolicy: PreferDualStack,") + deployment()
    cluster.apply(text)
    assert cluster.apply(text) == Plan(put=(), delete=())


def test_a_running_pod_s_labels_change_and_its_spec_does_not() -> None:
    cluster = Cluster()
    cluster.apply(pod("a"))
    uid = cluster.pod("a")["metadata"]["uid"]
    cluster.apply(pod("a").replace("name: a", "name: a, labels: {x: y}"))
    assert cluster.pod("a")["metadata"]["labels"] == {"x": "y"}
    assert cluster.pod("a")["metadata"]["uid"] == uid
    with pytest.raises(LabError, match=r"Pod a \(default\): spec: a running pod's spec cannot change"):
        cluster.apply(pod("a", "hostNetwork: true,"))


@pytest.mark.parametrize(
    ("spec", "ips"),
    [
        ("", ["10.70.1.0"]),
        ("ipFamilies: [IPv6],", ["fd67:6d00:0:fe00::100"]),
        ("ipFamilyPolicy: PreferDualStack,", ["10.70.1.0", "fd67:6d00:0:fe00::100"]),
        ("ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6],", ["fd67:6d00:0:fe00::100", "10.70.1.0"]),
        ("clusterIP: None,", ["None"]),
        ("clusterIP: 10.70.9.9,", ["10.70.9.9"]),
    ],
)
def test_cluster_ips(spec: str, ips: list[str]) -> None:
    cluster = Cluster()
    cluster.apply(service("s", spec))
    made = cluster.objects[Key("Service", "default", "s")]["spec"]
    assert made["clusterIPs"] == ips and made["clusterIP"] == ips[0]
    assert made["ports"] == [{"protocol": "TCP", "port": 80, "targetPort": 80}]


def test_cluster_ips_outside_the_range_or_taken() -> None:
    cluster = Cluster()
    with pytest.raises(
        LabError, match=r"Service s \(default\): spec.clusterIP: '10.96.0.1' is not an address of 10.70.0.0/16"
    ):
        cluster.apply(service("s", "clusterIP: 10.96.0.1,"))
    with pytest.raises(LabError, match="is taken by another service"):
        cluster.apply(service("s", "clusterIP: 10.70.0.10,"))
    cluster.apply(service("s") + service("t"))
    assert cluster.objects[Key("Service", "default", "t")]["spec"]["clusterIP"] == "10.70.1.1"


def test_a_deployment_makes_scales_and_replaces_pods() -> None:
    cluster = Cluster()
    key = Key("Deployment", "default", "d")
    cluster.apply(deployment(2))
    first = pods_of(cluster.objects, key)
    owner = first[0]["metadata"]["ownerReferences"][0]
    assert owner["kind"] == "ReplicaSet" and owner["controller"] is True
    assert owner["name"] == f"d-{first[0]['metadata']['labels']['pod-template-hash']}"
    assert first[0]["metadata"]["name"].startswith(owner["name"] + "-")
    cluster.apply(deployment(3))
    assert {key_of(p) for p in first} < {key_of(p) for p in pods_of(cluster.objects, key)}
    plan = cluster.apply(deployment(1))
    assert len(plan.delete) == 2 and len(pods_of(cluster.objects, key)) == 1
    plan = cluster.apply(deployment(1, command="y"))
    assert len(plan.delete) == 1 and len(pods_of(cluster.objects, key)) == 1
    assert cluster.apply(deployment(0)).delete and not pods_of(cluster.objects, key)


def test_delete_takes_what_belongs_along() -> None:
    cluster = Cluster()
    cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n" + deployment() + pod("a"))
    cluster.apply(pod("b").replace("name: b", "name: b, namespace: other"))
    plan = plan_delete(cluster.objects, [Key("Deployment", "default", "d"), Key("Pod", "default", "absent")])
    assert [key.kind for key in plan.delete] == ["Deployment", "Pod", "Pod"]
    plan = plan_delete(cluster.objects, [Key("Namespace", "", "other")])
    assert set(plan.delete) == {Key("Namespace", "", "other"), Key("Pod", "other", "b")}
    with pytest.raises(LabError, match="cannot remove a node"):
        plan_delete(cluster.objects, [Key("Node", "", "n1")])


def test_unknown_namespaces_nodes_and_reserved_names() -> None:
    cluster = Cluster()
    with pytest.raises(LabError, match=r"Pod a \(other\): metadata.namespace: there is no Namespace 'other'"):
        cluster.apply(pod("a").replace("name: a", "name: a, namespace: other"))
    with pytest.raises(LabError, match=r"spec.nodeName: there is no Node 'n7'; there are n1, n2"):
        cluster.apply(pod("a", "nodeName: n7,"))
    with pytest.raises(LabError, match=r"Node fabric: metadata.name: the lab uses this name itself"):
        cluster.apply("apiVersion: v1\nkind: Node\nmetadata: {name: fabric}")
    assert cluster.objects == {}

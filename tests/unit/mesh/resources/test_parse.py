"""What is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.resources import KINDS, ObjectKey, ParseError, dump, key_of, parse, schema

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p", "namespace": "shop", "uid": "u1", "labels": {"app": "p"}},
    "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
    "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
}
SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "s", "namespace": "shop"},
    "spec": {"clusterIP": "10.96.0.1", "selector": {"app": "p"}, "ports": [{"port": 80, "targetPort": "http"}]},
}
DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "d", "namespace": "shop"},
    "spec": {
        "selector": {"matchLabels": {"app": "d"}},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c"}]}},
    },
}
AUTHORIZATION: dict[str, Any] = {
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": {"name": "reviews-policy"},
    "spec": {
        "selector": {"matchLabels": {"app": "reviews"}},
        "action": "ALLOW",
        "rules": [
            {
                "from": [
                    {"source": {"principals": ["cluster.local/ns/a/sa/b"], "ipBlocks": ["1.2.3.4", "10.0.0.0/8"]}}
                ],
                "to": [{"operation": {"ports": ["80"]}}],
                "when": [{"key": "destination.port", "values": ["80"]}],
            }
        ],
    },
}
PEER: dict[str, Any] = {
    "apiVersion": "security.istio.io/v1beta1",
    "kind": "PeerAuthentication",
    "metadata": {"name": "strict", "namespace": "shop"},
    "spec": {"selector": {"matchLabels": {"app": "p"}}, "portLevelMtls": {8080: {"mode": "STRICT"}}},
}
EXAMPLES = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}},
    {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": {"capacity": {"cpu": "2"}}},
    {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "sa"}},
    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a.txt": "b"}},
    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "r"}, "spec": {"replicas": 2}},
    POD,
    SERVICE,
    DEPLOYMENT,
    AUTHORIZATION,
    PEER,
]


def changed(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with one field set (`spec.rules.0.from`); a value of ... removes it."""
    made = copy.deepcopy(document)
    *way, last = path.split(".")
    here: Any = made
    for step in way:
        here = here[int(step)] if isinstance(here, list) else here.setdefault(step, {})
    place: Any = int(last) if isinstance(here, list) else last
    if value is ...:
        del here[place]
    else:
        here[place] = value
    return made


@pytest.mark.parametrize("document", EXAMPLES, ids=lambda d: d["kind"])
def test_a_kind_is_parsed_and_survives_being_written_again(document: dict[str, Any]) -> None:
    parsed = parse(document, file="f.yaml")
    assert key_of(parsed).kind == document["kind"]
    assert parse(dump(parsed), file="again") == parsed


def test_every_kind_has_an_example_and_a_schema() -> None:
    assert {d["kind"] for d in EXAMPLES} == set(KINDS)
    for kind in KINDS:
        made = schema(kind)
        msgspec.json.encode(made)
        assert made["$ref"].endswith(kind)
        assert made["$defs"][kind]["properties"]["kind"] == {"enum": [kind]}
    closed = schema("AuthorizationPolicy")["$defs"]
    assert closed["Source"]["additionalProperties"] is False


def test_a_namespaced_object_without_a_namespace_is_in_default_and_a_cluster_wide_one_in_none() -> None:
    assert key_of(parse(AUTHORIZATION, file="f")) == ObjectKey("AuthorizationPolicy", "default", "reviews-policy")
    node = changed(EXAMPLES[1], "metadata.namespace", "oops")
    assert key_of(parse(node, file="f")) == ObjectKey("Node", "", "n1")


def test_null_is_absent() -> None:
    document = changed(changed(POD, "metadata.labels", None), "metadata.creationTimestamp", None)
    assert parse(document, file="f").metadata.labels == {}


def test_unknown_fields_of_kubernetes_own_kinds_are_ignored() -> None:
    assert parse(changed(POD, "spec.topologySpreadConstraints", [{"maxSkew": 1}]), file="f") == parse(POD, file="f")


def test_the_error_names_object_field_cause_and_cure() -> None:
    with pytest.raises(ParseError) as caught:
        parse(changed(AUTHORIZATION, "spec.rules.0.from.0.source.ipBlocks.1", "10.0.0/8"), file="p.yaml")
    error = caught.value
    assert error.message == (
        'reviews-policy (default): spec.rules[0].from[0].source.ipBlocks[1]: "10.0.0/8" is not a CIDR; '
        "did you mean 10.0.0.0/8?"
    )
    assert str(error) == f"p.yaml: AuthorizationPolicy {error.message}"
    assert (error.kind, error.namespace, error.name) == ("AuthorizationPolicy", "default", "reviews-policy")


REFUSED = [
    (POD, "kind", "Podd", 'kind: "Podd" is not a kind this mesh knows; did you mean Pod?'),
    (POD, "kind", ..., "kind: it is missing"),
    (POD, "apiVersion", "v2", 'apiVersion: "v2" does not have this kind; write v1'),
    (POD, "apiVersion", ..., "apiVersion: it is missing"),
    (POD, "metadata", "x", "metadata.name: it is missing"),
    (POD, "metadata.name", "", "metadata.name: it is missing"),
    (POD, "metadata.name", "My_Pod", 'metadata.name: "My_Pod" is not a DNS subdomain; did you mean my-pod?'),
    (POD, "metadata.namespace", "a.b", 'metadata.namespace: "a.b" is not a DNS label'),
    (POD, "metadata.lables", {}, "metadata.lables: there is no such field; did you mean labels?"),
    (POD, "metadata.labels.version", 1, 'metadata.labels[version]: expected a string, got int 1; quote it: "1"'),
    (POD, "metadata.labels", {"a b": "c"}, "is not a label key"),
    (POD, "metadata.creationTimestamp", "soon", "metadata.creationTimestamp: invalid RFC3339"),
    (POD, "spec.containers", [], "spec.containers: a pod needs at least one container"),
    (POD, "spec.containers.0.ports.0.containerPort", 70000, "containerPort: expected int <= 65535"),
    (POD, "spec.containers.0.ports.0.name", "Http!", "is not a port name"),
    (POD, "spec.containers.0.readinessProbe", {"httpGet": {"port": 0}}, "readinessProbe.httpGet.port: 0 is not a port"),
    (POD, "spec.containers.0.livenessProbe", {}, "livenessProbe: 0 handlers given"),
    (POD, "spec.containers.0.livenessProbe", {"exec": {}}, "livenessProbe.exec.command: it is missing"),
    (
        changed(POD, "spec.volumes", [{"name": "data", "configMap": {"name": "m"}}]),
        "spec.containers.0.volumeMounts",
        [{"name": "dat", "mountPath": "/x"}],
        'volumeMounts[0].name: "dat" is not a volume; did you mean data?',
    ),
    (POD, "spec.volumes", [{"name": "v"}, {"name": "v"}], 'spec.volumes[1].name: the volume name "v" is taken'),
    (POD, "spec.volumes", [{"name": "v", "configMap": {}}], "spec.volumes[0].configMap.name: it is missing"),
    (POD, "spec.restartPolicy", "Sometimes", '"Sometimes" is not one of Always, Never, OnFailure'),
    (POD, "status.podIPs.1.ip", "fd00::g", 'status.podIPs[1].ip: "fd00::g" is not an IP address'),
    (SERVICE, "metadata.name", "a.b", "is not a DNS label"),
    (SERVICE, "spec.clusterIP", "10.96.0.0/12", "is not an IP address; did you mean 10.96.0.0?"),
    (SERVICE, "spec.ports", [], "spec.ports: a service needs at least one port"),
    (SERVICE, "spec.ports", [{"port": 1}, {"port": 2}], "spec.ports[0].name: it has no name"),
    (
        SERVICE,
        "spec.ports",
        [{"port": 1, "name": "a"}, {"port": 1, "name": "b"}],
        'spec.ports[1]: the port "TCP 1" is taken',
    ),
    (SERVICE, "spec.ports.0.targetPort", 70000, "spec.ports[0].targetPort: 70000 is not a port"),
    (SERVICE, "spec.ipFamilyPolicy", "DualStack", "did you mean PreferDualStack?"),
    (SERVICE, "spec.type", "ExternalName", "spec.externalName: an ExternalName service names nothing"),
    (DEPLOYMENT, "spec.selector", {}, "spec.selector: it selects nothing"),
    (DEPLOYMENT, "spec.template.metadata.labels.app", "x", "spec.selector: it does not select the template's own"),
    (AUTHORIZATION, "spec.acton", "DENY", "spec.acton: there is no such field; did you mean action?"),
    (AUTHORIZATION, "spec.action", "DENNY", '"DENNY" is not one of ALLOW, AUDIT, CUSTOM, DENY; did you mean DENY?'),
    (AUTHORIZATION, "spec.action", "CUSTOM", "spec.provider: it belongs to the action CUSTOM"),
    (AUTHORIZATION, "spec.selector.matchLabels.app", "rev*", "a selector has no wildcards"),
    (AUTHORIZATION, "spec.selector.labels", {}, "spec.selector.labels: there is no such field"),
    (AUTHORIZATION, "spec.targetRefs", [{"kind": "Service", "name": "s"}], "both selector and targetRefs"),
    (AUTHORIZATION, "spec.rules.0.from", [], "spec.rules[0].from: the list is empty"),
    (AUTHORIZATION, "spec.rules.0.from.0.source", {}, "from[0].source: it says nothing"),
    (AUTHORIZATION, "spec.rules.0.from.0", {}, "spec.rules[0].from[0].source: it is missing"),
    (AUTHORIZATION, "spec.rules.0.from.0.source.principals.0", "", "principals[0]: the value is empty"),
    (AUTHORIZATION, "spec.rules.0.from.0.source.serviceAccounts", ["a/b"], "stands beside principals or namespaces"),
    (AUTHORIZATION, "spec.rules.0.from.0.source", {"serviceAccounts": ["a/b/c"]}, "is not a service account"),
    (AUTHORIZATION, "spec.rules.0.from.0.source.ipBlocks.0", "10.0.0.0/33", "the prefix length of IPv4 is 0 to 32"),
    (AUTHORIZATION, "spec.rules.0.to.0.operation.ports.0", 8080, 'got int 8080; quote it: "8080"'),
    (AUTHORIZATION, "spec.rules.0.to.0.operation.ports.0", "80-90", "list the ports one by one"),
    (AUTHORIZATION, "spec.rules.0.to.0.operation.ports.0", "0", '"0" is not a port'),
    (AUTHORIZATION, "spec.rules.0.when.0.key", "source.prinzipal", "did you mean source.principal?"),
    (AUTHORIZATION, "spec.rules.0.when.0.values", [], "spec.rules[0].when[0]: neither values nor notValues"),
    (AUTHORIZATION, "spec.rules.0.when.0.values.0", "http", 'when[0].values[0]: "http" is not a port'),
    (AUTHORIZATION, "spec.rules", "all", "spec.rules: expected array, got str"),
    (PEER, "spec.portLevelMtls", {8080: {"mode": "STRICKT"}}, "spec.portLevelMtls[8080].mode"),
    (PEER, "spec.portLevelMtls", {70000: {"mode": "STRICT"}}, "spec.portLevelMtls[70000]: 70000 is not a port"),
    (PEER, "spec.portLevelMtls", {"http": {"mode": "STRICT"}}, "spec.portLevelMtls: a key has the wrong form"),
    (PEER, "spec.selector", ..., "spec.portLevelMtls: there is no selector with labels"),
    (PEER, "spec.mtls.mode", "strict", "did you mean STRICT?"),
]


@pytest.mark.parametrize(("document", "path", "value", "says"), REFUSED, ids=[r[3][:50] for r in REFUSED])
def test_what_is_refused(document: dict[str, Any], path: str, value: object, says: str) -> None:
    parse(document, file="f")
    with pytest.raises(ParseError) as caught:
        parse(changed(document, path, value), file="f.yaml")
    assert says in str(caught.value)
    assert str(caught.value).startswith("f.yaml: ")


@pytest.mark.parametrize("document", [None, 1, "x", [], [1], b"x"])
def test_a_document_that_is_no_object(document: object) -> None:
    with pytest.raises(ParseError, match="not an object"):
        parse(document, file="f")


def test_a_document_that_contains_itself() -> None:
    document = copy.deepcopy(POD)
    document["spec"]["loop"] = document
    with pytest.raises(ParseError, match="nested deeper"):
        parse(document, file="f")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.binary(max_size=3)
keys = st.text(max_size=8) | st.integers() | st.sampled_from(["spec", "metadata", "name", "rules", "from", "source"])
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4))


@settings(deadline=None)  # the machine may be busy
@given(anything)
def test_random_documents_raise_nothing_but_parse_errors(document: object) -> None:
    with pytest.raises(ParseError):
        parse(document, file="f")


@settings(deadline=None)  # the machine may be busy
@given(st.data())
def test_random_damage_raises_nothing_but_parse_errors(data: st.DataObject) -> None:
    document = copy.deepcopy(data.draw(st.sampled_from(EXAMPLES)))
    here: Any = document
    while True:
        choices = list(here) if isinstance(here, dict) else list(range(len(here)))
        place = data.draw(st.sampled_from(choices))
        if isinstance(here[place], dict | list) and here[place] and data.draw(st.booleans()):
            here = here[place]
            continue
        here[place] = data.draw(anything)
        break
    try:
        parsed = parse(document, file="f")
    except ParseError as error:
        assert str(error).startswith("f: ")
    else:
        assert parse(dump(parsed), file="f") == parsed

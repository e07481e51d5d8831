"""What istioctl and Kiali read of an agent: types and names as Istio's own tools expect them."""

from __future__ import annotations

import base64
import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from controller import ca
from mesh.control import CertificateReply, Redirection
from mesh.model import (
    Clause,
    Match,
    MatchKind,
    Policy,
    PolicyAction,
    PolicyScope,
    Rule,
    ServiceAccountMatch,
    StringMatch,
)
from mesh.snapshot import Delta
from tests.unit.ztunnel.small_agent import (
    PRODUCTPAGE,
    REVIEWS,
    SNAPSHOT,
    START,
    ZONED,
    SmallAgent,
    SmallPod,
    inbound,
    outbound,
)
from ztunnel.admin import dump, report
from ztunnel.certificates import CertificateView
from ztunnel.csr import accept, signing_request

POLICY = Policy(
    name="only-web",
    namespace="default",
    scope=PolicyScope.WORKLOAD_SELECTOR,
    action=PolicyAction.DENY,
    rules=(
        Rule(
            (
                Clause(
                    (
                        Match(
                            not_principals=(StringMatch(MatchKind.EXACT, PRODUCTPAGE.identity.principal),),
                            namespaces=(StringMatch(MatchKind.PRESENCE), StringMatch(MatchKind.PREFIX, "shop-")),
                            not_service_accounts=(ServiceAccountMatch("shop", "web"),),
                            source_ips=("10.0.0.0/8",),
                            not_destination_ports=(22,),
                        ),
                    )
                ),
                Clause(),
            )
        ),
    ),
    dry_run=True,
)


# The types into which istioctl reads it (istio/istio istioctl/pkg/writer/ztunnel/configdump/api.go). JSON that is
# not of them makes the whole command fail.
class Camel(msgspec.Struct, rename="camel"):
    pass


class ReadWorkload(Camel):
    uid: str
    workload_ips: list[str]
    protocol: str
    name: str
    namespace: str
    service_account: str
    workload_name: str
    workload_type: str
    canonical_name: str
    canonical_revision: str
    cluster_id: str
    trust_domain: str
    locality: dict[str, str]
    node: str
    network: str
    status: str
    capacity: int
    authorization_policies: list[str]


class ReadEndpoint(Camel):
    workload_uid: str
    port: dict[int, int]


class ReadService(Camel):
    name: str
    namespace: str
    hostname: str
    vips: list[str]
    ports: dict[str, int]
    load_balancer: dict[str, Any]
    endpoints: dict[str, ReadEndpoint]
    subject_alt_names: list[str]
    ip_families: str | None


class ReadPolicy(Camel):
    name: str
    namespace: str
    scope: str
    action: str
    rules: list[list[list[dict[str, Any]]]]


class ReadCertificate(Camel):
    pem: str
    serial_number: str
    valid_from: str
    expiration_time: str


class ReadCertificates(Camel):
    identity: str
    state: str
    cert_chain: list[ReadCertificate]
    root_certs: list[ReadCertificate]


class ReadConnection(Camel):
    src: str
    original_dst: str | None
    actual_dst: str
    protocol: str


class ReadState(Camel):
    state: str
    connections: dict[str, list[ReadConnection]]
    info: dict[str, str]


class Read(Camel):
    workloads: list[ReadWorkload]
    services: list[ReadService]
    policies: list[ReadPolicy]
    certificates: list[ReadCertificates]
    workload_state: dict[str, ReadState]


def read(agent: SmallAgent) -> Read:
    text = report.encode(dump.config_dump(agent, agent.kernel(), "1.2.3", START + timedelta(seconds=42)))
    dumped = json.loads(text)
    assert {"status", "bpf", "version"} <= dumped.keys()
    assert dumped["config"]["localNode"] == "node1"
    return msgspec.json.decode(text, type=Read)


def test_workloads_and_services() -> None:
    found = read(SmallAgent(snapshot=SNAPSHOT.apply(Delta(upserts=(ZONED,)))))
    page, _, zoned, old = found.workloads
    assert (page.uid, page.workload_ips, page.protocol) == (PRODUCTPAGE.uid, ["10.10.0.2", "fd00::2"], "HBONE")
    assert (page.service_account, page.trust_domain, page.status) == (
        "bookinfo-productpage",
        "cluster.local",
        "Healthy",
    )
    assert (old.protocol, old.status) == ("TCP", "Unhealthy")
    assert zoned.locality == {"region": "eu", "zone": "eu-1", "subzone": ""}
    (service,) = found.services
    assert (service.vips, service.ports, service.ip_families) == (["/10.70.0.20"], {"9080": 8080}, None)
    assert service.endpoints[REVIEWS.uid].port == {9080: 8080}
    assert service.load_balancer == {"routingPreferences": [], "mode": "Standard", "healthPolicy": "OnlyHealthy"}


def test_policies() -> None:
    (policy,) = read(SmallAgent(snapshot=SNAPSHOT.apply(Delta(upserts=(POLICY,))))).policies
    assert (policy.name, policy.scope, policy.action) == ("only-web", "WorkloadSelector", "Deny")
    match = {
        "namespaces": [{"Presence": []}, {"Prefix": "shop-"}],
        "sourceIps": ["10.0.0.0/8"],
        "notPrincipals": [{"Exact": "cluster.local/ns/default/sa/bookinfo-productpage"}],
        "notServiceAccounts": [{"namespace": "shop", "serviceAccount": "web"}],
        "notDestinationPorts": [22],
    }
    assert policy.rules == [[[match], []]]


def test_certificates_without_keys(tmp_path: Path) -> None:
    now, key = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
    authority = ca.load_or_create(tmp_path, trust_domain="cluster.local", now=now)
    chain = authority.issue(signing_request(PRODUCTPAGE.identity, key), PRODUCTPAGE.identity, now=now)
    reply = CertificateReply(chain=chain, roots=authority.roots)
    held = accept(PRODUCTPAGE.identity, key, reply, now, random.Random(1))
    views = [
        CertificateView(
            identity=PRODUCTPAGE.identity, state="valid", chain=held.credentials.chain, roots=held.credentials.roots
        ),
        CertificateView(identity=REVIEWS.identity, state="failed", error="the controller answered 403"),
        CertificateView(identity=ZONED.identity, state="pending"),
    ]
    agent = SmallAgent(held=views)
    good, failed, waiting = read(agent).certificates
    assert (good.identity, good.state) == (str(PRODUCTPAGE.identity), "Available")
    leaf = x509.load_pem_x509_certificate(base64.b64decode(good.cert_chain[0].pem))
    assert int(good.cert_chain[0].serial_number) == leaf.serial_number
    assert datetime.fromisoformat(good.cert_chain[0].expiration_time) == leaf.not_valid_after_utc
    assert [root.valid_from.endswith("Z") for root in good.root_certs] == [True]
    assert (failed.state, failed.cert_chain) == ("Unavailable: the controller answered 403", [])
    assert waiting.state == "Initializing"
    text = report.encode(dump.config_dump(agent, agent.kernel(), "1", START))
    assert b"PRIVATE" not in text
    assert base64.b64encode(held.credentials.key) not in text


def test_pods_and_what_they_have_open() -> None:
    own = [
        SmallPod(instance="uid-productpage", namespace="default", name="productpage-v1-0"),
        SmallPod(instance="uid-reviews", namespace="default", name="reviews-v2-0", redirection=Redirection.PENDING),
        SmallPod(instance="uid-old", namespace="legacy", name="old-0", redirection=Redirection.DISABLED),
    ]
    agent = SmallAgent(own_pods=own)
    agent.open(outbound(1))
    agent.open(outbound(2, hbone=None, direct=True))
    agent.open(inbound(3))
    agent.open(inbound(4, hbone=None, service=None, upstream=None))
    states = read(agent).workload_state
    assert {uid: state.state for uid, state in states.items()} == {"uid-productpage": "Up", "uid-reviews": "Pending"}
    page, reviews = states["uid-productpage"], states["uid-reviews"]
    assert page.info == {
        "name": "productpage-v1-0",
        "namespace": "default",
        "trustDomain": "cluster.local",
        "serviceAccount": "bookinfo-productpage",
    }
    assert page.connections == {
        "inbound": [],
        "outbound": [
            ReadConnection("10.10.0.2:40000", "10.70.0.20:9080", "10.10.1.3:15008", "HBONE"),
            ReadConnection("10.10.0.2:40000", "10.70.0.20:9080", "10.10.1.3:8080", "DIRECT"),
        ],
    }
    assert reviews.connections["inbound"] == [
        ReadConnection("10.10.0.2:40000", "reviews.default.svc.cluster.local", "10.10.1.3:8080", "HBONE"),
        ReadConnection("10.10.0.2:40000", None, "10.10.1.3:8080", "TCP"),
    ]

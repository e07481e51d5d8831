"""Which columns each answer of an agent has, from which fields."""

from __future__ import annotations

from collections.abc import Callable

from ztunnel.cli.tables import AGENT, TOLD_BY, Column, Item, count, human_duration, size, text, until


def _party(end: str) -> Callable[[Item], str]:
    """`namespace/pod` where it is known, and always the address."""

    def cell(item: Item) -> str:
        party = item.get(end) or {}
        pod = f"{party['namespace']}/{party['pod']}" if party.get("pod") else ""
        return " ".join(part for part in (pod, party.get("address") or "") if part) or "-"

    return cell


def _principal(end: str) -> Callable[[Item], str]:
    return lambda item: text(end, "identity")(item).removeprefix("spiffe://")


def _identity(item: Item) -> str:
    return text("identity")(item).removeprefix("spiffe://")


def _ports(item: Item) -> str:
    return ",".join(f"{p['service_port']}→{p['target_port'] or 'named'}" for p in item.get("ports", ())) or "-"


def _map_fill(item: Item) -> str:
    entries, limit = item.get("entries"), item.get("max_entries")
    return "-" if entries is None or not limit else f"{100 * entries / limit:.0f}%"


STATUS = (
    AGENT,
    Column("READY", lambda s: "yes" if s.get("ready") else "no"),
    Column("CONTROLLER", text("controller", "state")),
    Column("SNAPSHOT", count("snapshot", "version"), right=True),
    Column("ENROLLED", lambda s: f"{s['pods_enrolled']}/{s['pods_wanted']}", right=True),
    Column("CERTIFICATES", lambda s: f"{s['certificates']['valid']}/{s['certificates']['total']}", right=True),
    Column("IN", count("connections", "inbound"), right=True),
    Column("OUT", count("connections", "outbound"), right=True),
    Column("OLDER", count("connections", "older"), right=True, spare=1),
    Column("UP", lambda s: human_duration(s.get("uptime_seconds") or 0), right=True, spare=2),
    Column("VERSION", text("version"), spare=3),
)
PODS = (
    AGENT,
    Column("NAMESPACE", text("namespace")),
    Column("POD", text("name"), folds=True),
    Column("STATE", text("state")),
    Column("ADDRESS", text("addresses"), stacked=True),
    Column("IDENTITY", _identity, spare=1),
    Column("ERROR", text("error"), optional=True, folds=True),
)
WORKLOADS = (
    TOLD_BY,
    Column("NAMESPACE", text("namespace")),
    Column("NAME", text("name"), folds=True),
    Column("ADDRESS", text("addresses"), stacked=True),
    Column("NODE", text("node")),
    Column("PROTOCOL", text("protocol")),
    Column("STATUS", text("status")),
    Column("IDENTITY", _identity, spare=2),
    Column(
        "SERVICES",
        lambda w: text("hostnames")({"hostnames": [s["hostname"] for s in w.get("services", ())]}),
        stacked=True,
        spare=3,
    ),
)
SERVICES = (
    TOLD_BY,
    Column("NAMESPACE", text("namespace")),
    Column("NAME", text("name"), folds=True),
    Column("ADDRESS", text("addresses"), stacked=True),
    Column("PORTS", _ports, stacked=True),
    Column("ENDPOINTS", lambda s: f"{s['endpoints_healthy']}/{s['endpoints_total']}", right=True),
    Column("HOSTNAME", text("hostname"), spare=2),
)
CERTIFICATES = (
    AGENT,
    Column("IDENTITY", _identity, folds=True),
    Column("STATE", text("state")),
    Column("EXPIRES IN", until("not_after"), right=True),
    Column("NOT BEFORE", text("not_before"), spare=2),
    Column("NOT AFTER", text("not_after"), spare=1),
    Column("SERIAL", text("serial"), spare=3),
    Column("ERROR", text("error"), optional=True, folds=True),
)
CONNECTIONS = (
    AGENT,
    Column("DIRECTION", text("direction")),
    Column("SOURCE", _party("source"), stacked=True, folds=True),
    Column("DESTINATION", _party("destination"), stacked=True, folds=True),
    Column("SERVICE", text("service"), spare=3),
    Column("PROTOCOL", text("protocol")),
    Column("SENT", size("bytes_sent"), right=True),
    Column("RECEIVED", size("bytes_received"), right=True),
    Column("AGE", lambda c: human_duration(c.get("age_seconds") or 0), right=True, spare=1),
    Column("SOURCE IDENTITY", _principal("source"), spare=4),
    Column("DESTINATION IDENTITY", _principal("destination"), spare=5),
)
OLDER = (
    AGENT,
    Column("NAMESPACE", text("namespace")),
    Column("POD", text("pod"), folds=True),
    Column("DIRECTION", text("direction")),
    Column("LOCAL", text("local")),
    Column("REMOTE", text("remote")),
)
PROGRAMS = (
    AGENT,
    Column("PROGRAM", text("name")),
    Column("ID", text("id"), right=True),
    Column("ATTACHED TO", text("attach")),
    Column("TARGET", text("target"), right=True),
    Column("LINK", text("link"), right=True),
    Column("TAG", text("tag")),
)
MAPS = (
    AGENT,
    Column("MAP", text("name")),
    Column("TYPE", text("type")),
    Column("ENTRIES", text("entries"), right=True),
    Column("MAX", lambda m: text("max_entries")(m) if m.get("max_entries") else "-", right=True),
    Column("FILL", _map_fill, right=True),
)
COUNTERS = (
    AGENT,
    Column("REASON", text("reason")),
    Column("COUNT", count("count"), right=True),
    Column("MEANING", text("meaning"), folds=True),
)

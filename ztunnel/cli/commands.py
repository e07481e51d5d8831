"""The subcommands: their options, what they ask agents, and their exit codes.

Exit codes: 0 all is well, 1 an agent cannot be reached, 2 wrong usage, 3 (`status` only) not ready or not healthy.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ztunnel.cli import columns, tables
from ztunnel.cli.client import Agent, AgentUnreachable, Usage, find_agents
from ztunnel.cli.tables import Table, table

OK, UNREACHABLE, USAGE, UNHEALTHY = 0, 1, 2, 3

Answers = list[dict[str, Any]]  # one object per agent that answered, each with "agent": its node
Options = argparse.Namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One subcommand. `path` is what it asks; `narrow` drops from an answer what the filters exclude."""

    name: str
    path: str
    summary: str
    description: str
    examples: str
    narrow: Callable[[dict[str, Any], Options], dict[str, Any]]
    as_tables: Callable[[Answers], list[Table]]
    as_json: Callable[[Answers], list[Any]]
    filters: tuple[str, ...] = ()
    watch: bool = False


def register(subparsers: Any) -> None:
    """Add the commands to `gossamer`'s subparsers. Each sets `run`, called with the parsed options; it returns the exit
    code."""
    for command in COMMANDS:
        parser = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            epilog=f"examples:\n{command.examples}\n\n{_EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        where = parser.add_argument_group("whom to ask (default: every node of the lab that is up)")
        where.add_argument("--socket", metavar="PATH", help="the agent's admin socket (environment: GOSSAMER_SOCKET)")
        where.add_argument("--lab", metavar="NAME", help="a lab by name (default: the only one there is, else `lab`)")
        where.add_argument("--node", metavar="NODE", help="one node of the lab (default: all)")
        parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: table")
        if "namespace" in command.filters:
            parser.add_argument("-n", "--namespace", metavar="NS", help="only what has to do with this namespace")
        if "pod" in command.filters:
            parser.add_argument("--pod", metavar="POD", help="only what has to do with the pod of this name")
        if command.watch:
            parser.add_argument(
                "-w", "--watch", nargs="?", type=_seconds, const=2.0, metavar="SECONDS",
                help="show again every SECONDS (default 2) until interrupted; with -o json, one line each time",
            )  # fmt: skip
        parser.set_defaults(run=_runner(command))


def _seconds(given: str) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{given!r}: must be from 0.1 to 3600 seconds")
    return seconds


def _runner(command: Command) -> Callable[[Options], int]:
    return lambda options: run(command, options)


def run(command: Command, options: Options) -> int:
    """Ask, print, and say by the exit code how it went."""
    interval = getattr(options, "watch", None)
    try:
        while True:
            try:
                agents = find_agents(socket_path=options.socket, lab=options.lab, node=options.node)
            except Usage as error:
                print(f"gossamer {command.name}: {error}", file=sys.stderr)
                return USAGE
            except AgentUnreachable as error:
                print(f"gossamer {command.name}: {error}", file=sys.stderr)
                return UNREACHABLE
            code = _once(command, agents, options, watching=interval is not None)
            if interval is None:
                return code
            time.sleep(interval)
    except KeyboardInterrupt:
        return OK if interval is not None else 130
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return OK


def _once(command: Command, agents: list[Agent], options: Options, *, watching: bool) -> int:
    answers, missing = [], []
    for agent in agents:
        try:
            answer = agent.get(command.path)
        except AgentUnreachable as error:
            missing.append(str(error))
            continue
        answers.append(command.narrow({**answer, "agent": answer.get("node") or agent.node}, options))
    if watching and options.output == "table" and sys.stdout.isatty():
        sys.stdout.write("\x1b[H\x1b[2J")
    if options.output == "json":
        json.dump(command.as_json(answers), sys.stdout, indent=None if watching else 2, ensure_ascii=False)
        sys.stdout.write("\n")
    elif answers:
        tables.show(command.as_tables(answers), sys.stdout)
    sys.stdout.flush()
    for text in missing:
        print(f"gossamer {command.name}: {text}", file=sys.stderr)
    if missing:
        return UNREACHABLE
    if not watching and (text := _unknown(agents, answers, options)):
        print(f"gossamer {command.name}: {text}", file=sys.stderr)
    if command.name == "status" and not all(a.get("ready") and not a.get("problems") for a in answers):
        return UNHEALTHY
    return OK


# Filters

_FILTERED = ("pods", "workloads", "services", "certificates", "connections", "older")


def _keep(answer: dict[str, Any], key: str, keep: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    return {**answer, key: [item for item in answer.get(key, ()) if keep(item)]}


def _matches(options: Options, *parties: Sequence[str | None]) -> bool:
    """Whether one of the (namespace, pod) pairs is what the filters ask for."""
    namespace, pod = getattr(options, "namespace", None), getattr(options, "pod", None)
    return any((namespace is None or ns == namespace) and (pod is None or name == pod) for ns, name in parties)


def _everything(answer: dict[str, Any], options: Options) -> dict[str, Any]:
    return answer


def _narrow_pods(key: str) -> Callable[[dict[str, Any], Options], dict[str, Any]]:
    return lambda answer, options: _keep(answer, key, lambda p: _matches(options, (p["namespace"], p["name"])))


def _narrow_certificates(answer: dict[str, Any], options: Options) -> dict[str, Any]:
    if options.pod is not None:
        return _keep(answer, "certificates", lambda c: _matches(options, *(p.split("/", 1) for p in c["pods"])))
    return _keep(answer, "certificates", lambda c: options.namespace in (None, c["namespace"]))


def _narrow_connections(answer: dict[str, Any], options: Options) -> dict[str, Any]:
    answer = _keep(answer, "connections", lambda c: _matches(options, _pod(c["source"]), _pod(c["destination"])))
    return _keep(answer, "older", lambda c: _matches(options, _pod(c)))


def _pod(party: Mapping[str, Any]) -> Sequence[str | None]:
    return party.get("namespace"), party.get("pod")


def _unknown(agents: list[Agent], answers: Answers, options: Options) -> str:
    """What to say if the filters have left nothing, and ask for what no agent knows: a typing error, most likely."""
    given = {name: value for name in ("namespace", "pod") if (value := getattr(options, name, None)) is not None}
    lists = [answer.get(key) for answer in answers for key in _FILTERED]
    if not given or any(isinstance(found, list) and found for found in lists):
        return ""
    try:
        known = [agent.get("/workloads")["workloads"] for agent in agents]
    except AgentUnreachable:
        return ""
    if any(_matches(options, (w["namespace"], w["name"])) for workloads in known for w in workloads):
        return ""
    wanted = " in ".join(f"{name} {given[name]!r}" for name in ("pod", "namespace") if name in given)
    return f"no agent knows {wanted}; `gossamer workloads` lists what there is"


# Tables and JSON


def _items(answers: Answers, key: str) -> list[dict[str, Any]]:
    return [{"agent": answer["agent"], **item} for answer in answers for item in answer.get(key, ())]


def _flat(key: str) -> Callable[[Answers], list[Any]]:
    return lambda answers: _items(answers, key)


def _one_table(key: str, shown: Sequence[tables.Column], note: str) -> Callable[[Answers], list[Table]]:
    return lambda answers: [table(shown, _items(answers, key), note=note)]


def _status_tables(answers: Answers) -> list[Table]:
    problems = [f"{a['agent']}: {p}" for a in answers for p in (*a.get("pending", ()), *a.get("problems", ()))]
    return [
        table(columns.STATUS, answers),
        table(columns.PODS, _items(answers, "pods"), title="Pods of these nodes that the mesh knows", note="none"),
        Table((tables.Column("PROBLEM", str, folds=True),), [[problem] for problem in problems]),
    ]


def _connection_tables(answers: Answers) -> list[Table]:
    return [
        table(columns.CONNECTIONS, _items(answers, "connections"), note="no open connections"),
        table(columns.OLDER, _items(answers, "older"), title="Older than the pod's enrolment: outside the mesh"),
    ]


def _bpf_tables(answers: Answers) -> list[Table]:
    return [
        table(columns.PROGRAMS, _items(answers, "programs"), note="no programs loaded"),
        table(columns.MAPS, _items(answers, "maps")),
        table(columns.COUNTERS, [c for c in _items(answers, "counters") if c["count"]], title="Refused in the kernel"),
    ]


def _same(answers: Answers) -> list[Any]:
    return answers


_EXIT_CODES = (
    "exit codes: 0 all is well · 1 an agent cannot be reached · 2 wrong usage · 3 (status) not ready or healthy"
)

COMMANDS = (
    Command(
        name="status",
        path="/status",
        summary="is the node's agent ready, and what is wrong",
        description="What each node's agent says of itself: readiness, controller, pods and their enrolment, problems.",
        examples="  gossamer status\n  gossamer status --node n1 -o json | jq '.[].problems'\n"
        "  until gossamer status >/dev/null; do sleep 1; done",
        filters=("namespace", "pod"),
        narrow=_narrow_pods("pods"),
        as_tables=_status_tables,
        as_json=_same,
    ),
    Command(
        name="workloads",
        path="/workloads",
        summary="workloads as the agent knows them: addresses, identity, protocol",
        description="Every workload as the agents know it. A row on which several agents agree is shown once.",
        examples="  gossamer workloads -n default\n"
        "  gossamer workloads -o json | jq '.[] | select(.protocol == \"HBONE\") | .name'",
        filters=("namespace", "pod"),
        narrow=_narrow_pods("workloads"),
        as_tables=_one_table("workloads", columns.WORKLOADS, "no workloads"),
        as_json=_flat("workloads"),
    ),
    Command(
        name="services",
        path="/services",
        summary="services: addresses, ports, endpoints",
        description="Every Service as the agents know it, with its healthy and all endpoints.",
        examples="  gossamer services\n  gossamer services -n default -o json",
        filters=("namespace",),
        narrow=_narrow_pods("services"),
        as_tables=_one_table("services", columns.SERVICES, "no services"),
        as_json=_flat("services"),
    ),
    Command(
        name="certificates",
        path="/certificates",
        summary="certificates held by the node: identity, serial, expiry",
        description="The certificates that the node's agent holds for its pods. Keys are never shown.",
        examples="  gossamer certificates\n  gossamer certificates -o json | jq '.[] | {identity, not_after}'",
        filters=("namespace", "pod"),
        narrow=_narrow_certificates,
        as_tables=_one_table("certificates", columns.CERTIFICATES, "no certificates"),
        as_json=_flat("certificates"),
    ),
    Command(
        name="connections",
        path="/connections",
        summary="live connections: both directions, bytes, identities, age",
        description="Connections that are open now. One between two enrolled pods is listed twice: outbound by the\n"
        "source's agent, inbound by the destination's. SENT goes from client to server in both.",
        examples="  gossamer connections -w\n  gossamer connections --node n1 --pod client\n"
        "  gossamer connections -o json | jq '.[].connections[] | select(.protocol == \"TCP\")'",
        filters=("namespace", "pod"),
        narrow=_narrow_connections,
        as_tables=_connection_tables,
        as_json=_same,
        watch=True,
    ),
    Command(
        name="bpf",
        path="/bpf",
        summary="the kernel side: programs, links, map fill, counters",
        description="The eBPF programs and links that steer sockets, the fill of their maps, their counters.",
        examples="  gossamer bpf\n  gossamer bpf -o json | jq '.[].maps[] | select(.entries > .max_entries * 0.9)'",
        narrow=_everything,
        as_tables=_bpf_tables,
        as_json=_same,
    ),
)

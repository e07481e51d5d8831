"""`gossamer lab …`: the lab's command line.

Exit codes: 0 done; 1 it could not be done (stderr says why and what to do); 2 wrong usage; `exec` passes the
command's own, and gives 125 if it could not be started.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.lab.fault import LabError

if TYPE_CHECKING:
    from deploy.lab.cluster import Lab
    from deploy.lab.manifest import Key

_EXIT = "exit codes: 0 done, 1 it could not be done, 2 wrong usage"
CANNOT_START = 125
_CONTROLLER_LOOKS = 1.0  # seconds in which the controller has seen a file that it knew before
_CONTROLLER_LISTS = 10.0  # seconds for it to list a new one; it does at once, but on a busy machine
Options = argparse.Namespace


def register(subparsers: Any) -> None:
    """Add `lab` and its subcommands. Each sets `run`, called with the parsed options; it returns the exit code."""
    parser = subparsers.add_parser(
        "lab",
        help="a real multi-node cluster on this machine",
        description="A cluster on one machine: nodes and pods are network namespaces, pods run real processes.",
        epilog=f"{_EXIT}; `exec` passes the command's own (125: it could not be started)",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[Options], int], summary: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary, epilog=_EXIT)
        command.add_argument("--name", default="lab", metavar="LAB", help="which lab (default: lab)")
        command.set_defaults(run=_guarded(run))
        return command

    up = add("up", _up, "bring up a lab with the objects of Kubernetes YAML files; apply them if it is up")
    _files(up)
    up.add_argument("--no-agent", action="store_true", help="without the mesh: no agents, no controller")
    up.add_argument("--timeout", type=float, default=180.0, metavar="SECONDS", help="to get ready (default: 180)")
    add("down", _down, "remove every trace of a lab, also after a crash")
    demo = add("demo", _demo, "bring up bookinfo, show that it works and what is encrypted, leave it running")
    demo.add_argument("--timeout", type=float, default=180.0, metavar="SECONDS", help="to get ready (default: 180)")
    apply = add("apply", _apply, "create or change objects in a lab")
    _files(apply)
    apply.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="to get ready (default: 120)")
    apply.add_argument("--no-wait", action="store_true", help="do not wait until everything is ready")
    _files(add("delete", _delete, "delete objects from a lab, by the files that define them"))
    label = add("label", _label, "set labels (KEY=VALUE) or remove them (KEY-); running pods are not restarted")
    _namespace(label)
    label.add_argument("object", type=_named, metavar="KIND/NAME", help="for example namespace/default or pod/sleep")
    label.add_argument("labels", nargs="+", type=_label_change, metavar="KEY=VALUE|KEY-")
    execute = add(
        "exec", _exec, "run a command in a pod (deploy/NAME: in its first ready pod; node/NAME: beside its pods)"
    )
    _target(execute)
    execute.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command and its arguments"
    )
    status = add("status", _status, "nodes and pods, their identities and enrolment")
    status.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: table")
    logs = add("logs", _logs, "what a container wrote (also: node/NAME for its agent, controller)")
    _target(logs)
    logs.add_argument("-f", "--follow", action="store_true", help="go on as it grows, until interrupted")
    logs.add_argument("--tail", type=_lines, metavar="N", help="only the last N lines")
    for name, run, summary in (
        ("restart-agent", _restart_agent, "start an agent that takes over from the one that runs, if one does"),
        ("kill-agent", _kill_agent, "SIGKILL a node's agent; it stays away until restart-agent"),
        ("partition", _partition, "cut a node off the fabric"),
    ):
        command = add(name, run, summary)
        command.add_argument("node", metavar="NODE")
        if name == "partition":
            command.add_argument("--heal", action="store_true", help="plug it in again")


def _files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--file", action="append", required=True, metavar="FILE", help="YAML; - is stdin; repeatable"
    )


def _namespace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--namespace", default="default", metavar="NS", help="default: default")


def _target(parser: argparse.ArgumentParser) -> None:
    _namespace(parser)
    parser.add_argument("-c", "--container", metavar="NAME", help="default: the pod's first")
    parser.add_argument("target", metavar="POD|deploy/NAME|node/NAME")


def _named(text: str) -> tuple[str, str]:
    kind, slash, name = text.partition("/")
    if not (kind and slash and name):
        raise argparse.ArgumentTypeError(f"{text!r}: give KIND/NAME, as namespace/default")
    return kind.lower(), name


def _label_change(text: str) -> tuple[str, str | None]:
    """A label's key, and its value or None if it is to be removed."""
    key, equals, value = text.partition("=")
    if not equals and not text.endswith("-"):
        raise argparse.ArgumentTypeError(f"{text!r}: give KEY=VALUE to set a label, KEY- to remove it")
    return (key, value) if equals else (text[:-1], None)


def _lines(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of lines")
    return int(text)


def _guarded(run: Callable[[Options], int]) -> Callable[[Options], int]:
    failed = CANNOT_START if run is _exec else 1

    def guarded(options: Options) -> int:
        try:
            return run(options)
        except LabError as error:
            for line in str(error).splitlines():
                print(f"gossamer lab: {line}", file=sys.stderr)
            return failed
        except KeyboardInterrupt:
            return 130
        except PermissionError as error:
            at = f"{error.filename}: " if error.filename else ""
            print(f"gossamer lab: {at}{error.strerror}; the lab needs root (sudo)", file=sys.stderr)
            return failed

    return guarded


def _read(options: Options) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name in options.file:
        try:
            texts[name] = sys.stdin.read() if name == "-" else Path(name).read_text()
        except UnicodeDecodeError as error:
            raise LabError(f"{name}: not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8") from None
        except OSError as error:
            raise LabError(f"{name}: {error.strerror}") from error
    return texts


def _up(options: Options) -> int:
    from deploy.lab.cluster import Lab
    from deploy.lab.progress import progress

    texts = _read(options)
    began = time.monotonic()
    with progress(f"lab {options.name}") as say:
        lab = Lab(options.name, say=say)
        lab.up(texts, agent=not options.no_agent, timeout=options.timeout)
    took = time.monotonic() - began
    print(f"lab {options.name}: {len(lab.nodes())} nodes, {len(lab.pods())} pods, ready in {took:.1f} s")
    return 0


def _down(options: Options) -> int:
    from deploy.lab.cluster import Lab

    there = Lab(options.name).down()
    print(f"lab {options.name}: {'removed' if there else 'nothing to remove'}")
    return 0


def _demo(options: Options) -> int:
    from deploy.lab import demo

    return demo.run(options.name, options.timeout)


def _apply(options: Options) -> int:
    from deploy.lab.cluster import Lab
    from deploy.lab.progress import progress

    with progress(f"lab {options.name}") as say:
        lab = Lab(options.name, say=say)
        changed = lab.apply(_read(options), timeout=options.timeout, wait=not options.no_wait)
    for key in changed:
        print(key)
    print(f"{_count(changed)} changed")
    return 1 if _say_refused(lab, changed) else 0


def _count(keys: Sequence[Key]) -> str:
    return f"{len(keys)} object{'' if len(keys) == 1 else 's'}"


def _say_refused(lab: Lab, changed: list[Key]) -> bool:
    """Say which of the changed policies are not in force as they are written, once the controller has seen them."""
    from deploy.lab import status
    from deploy.lab.manifest import CLUSTER_KINDS, Key

    policies = {key for key in changed if key.kind not in CLUSTER_KINDS}
    if not policies or not lab.has_agents:
        return False
    began, waited, unseen = time.monotonic(), 0.0, policies
    wrong: list[dict[str, Any]] = []
    # What it says at once may be of the file before.
    while waited < (_CONTROLLER_LISTS if unseen else _CONTROLLER_LOOKS):
        time.sleep(0.1)
        waited = time.monotonic() - began
        seen = {Key(item["kind"], item["namespace"], item["name"]): item for item in status.controlled(lab)}
        unseen = policies - seen.keys()
        wrong = status.not_in_force(seen[key] for key in sorted(policies & seen.keys()))
    for item in wrong:
        for condition in item["conditions"]:
            key = Key(item["kind"], item["namespace"], item["name"])
            but = " as written" if condition["status"] == "True" else ""
            print(f"gossamer lab: {key}: not in force{but}: {condition['message']}", file=sys.stderr)
    return bool(wrong)


def _delete(options: Options) -> int:
    from deploy.lab.cluster import Lab
    from deploy.lab.manifest import key_of
    from deploy.lab.progress import progress

    with progress(f"lab {options.name}") as say:
        lab = Lab(options.name, say=say)
        gone = lab.delete(key_of(item) for item in lab.parse(_read(options)))
    for key in gone:
        print(key)
    print(f"{_count(gone)} deleted")
    return 0


def _label(options: Options) -> int:
    from controller.translate.workload import mislabelled
    from deploy.lab.cluster import Lab
    from deploy.lab.manifest import CLUSTER_SCOPED, Key

    lab = Lab(options.name)
    kind, name = options.object
    known = {key.kind.lower(): key.kind for key in lab.objects()}
    if kind not in known:
        raise LabError(f"{kind}/{name}: there is no object of this kind; kinds there are: {', '.join(sorted(known))}")
    kind = known[kind]
    key = Key(kind, "" if kind in CLUSTER_SCOPED else options.namespace, name)
    labels = dict(options.labels)
    lab.label(key, labels)
    for condition in mislabelled({label: value for label, value in labels.items() if value is not None}):
        print(f"gossamer lab: {key}: {condition.message}", file=sys.stderr)
    return 0


def _exec(options: Options) -> int:
    from deploy.lab.cluster import Lab

    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise LabError("exec: no command; gossamer lab exec POD -- COMMAND")
    lab = Lab(options.name)
    argv, env, enter = lab.exec_call(
        options.target, command, namespace=options.namespace, container_name=options.container
    )
    sys.stdout.flush()
    try:
        enter()
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        raise LabError(f"{command[0]}: {error.strerror}") from error


def _status(options: Options) -> int:
    from deploy.lab import status
    from deploy.lab.cluster import Lab

    state = status.collect(Lab(options.name))
    if options.output == "json":
        print(json.dumps(state, indent=2))
    else:
        from ztunnel.cli.tables import show

        show(status.tables(state), sys.stdout)
    return 0


def _logs(options: Options) -> int:
    from deploy.lab.cluster import Lab

    path = Lab(options.name).logs(options.target, namespace=options.namespace, container_name=options.container)
    tail = ["-n", str(options.tail) if options.tail is not None else "+1"]
    if not path.exists():
        raise LabError(f"{options.target}: no log yet ({path})")
    sys.stdout.flush()
    os.execvp("tail", ["tail", *tail, *(["-F"] if options.follow else []), str(path)])


def _restart_agent(options: Options) -> int:
    from deploy.lab.cluster import Lab

    Lab(options.name).restart_agent(options.node)
    return 0


def _kill_agent(options: Options) -> int:
    from deploy.lab.cluster import Lab

    Lab(options.name).kill_agent(options.node)
    return 0


def _partition(options: Options) -> int:
    from deploy.lab.cluster import Lab

    Lab(options.name).partition(options.node, healed=options.heal)
    return 0

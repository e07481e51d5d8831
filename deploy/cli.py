"""`gossamer`: one command line for the lab, the agent, the controller, looking at them, and measuring.

Each part brings its own subcommands (`register`); a part is imported when its subcommand is asked for, so that
`gossamer --help` is quick and one part's missing library does not stop the others.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

# Part -> (the module with register(subparsers), its subcommands and what `gossamer --help` says of them).
_PARTS: dict[str, dict[str, str]] = {
    "deploy.lab.command": {"lab": "a real multi-node cluster on this machine"},
    "ztunnel.cli": {
        "status": "one look at the agents: ready, connected, enrolled",
        "workloads": "what an agent knows of workloads",
        "services": "what an agent knows of services",
        "certificates": "certificates an agent holds",
        "connections": "live connections through an agent",
        "bpf": "programs, links and maps in the kernel",
    },
    "deploy.bench": {"bench": "measure, side by side with no mesh and with Envoy"},
    "deploy.soak": {"soak": "connections of every kind, byte for byte, while policies flap and agents die"},
}
# Commands that are nothing without one of their own.
_GROUPS = (["lab"], ["bench"])
# Long-running programs, which parse their own arguments.
_PROGRAMS = {
    "agent": ("ztunnel.__main__", "run a node's agent"),
    "controller": ("controller.__main__", "run the controller"),
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name == "--version":
        print(f"gossamer {importlib.import_module('importlib.metadata').version('gossamer-mesh')}")
        return 0
    if name in _PROGRAMS:
        module = importlib.import_module(_PROGRAMS[name][0])
        return int(module.main(arguments[1:], prog=f"gossamer {name}") or 0)
    parser = argparse.ArgumentParser(
        prog="gossamer",
        description="An ambient service mesh: eBPF capture, mutual-TLS tunnels, one agent per node.",
        epilog="`gossamer COMMAND --help` tells more; `gossamer lab demo` is the place to start.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    wanted = next((part for part, subcommands in _PARTS.items() if name in subcommands), None)
    if wanted is not None:
        importlib.import_module(wanted).register(commands)
    else:
        _outline(commands)
    if not arguments or arguments in _GROUPS:  # what there is says more than that something is missing
        shown = commands.choices[name] if arguments else parser
        shown.exit(2, shown.format_help())
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # argparse would show the usage of `gossamer`, not of the command that does not know them
        commands.choices[name].error(f"unrecognized arguments: {' '.join(unknown)}")
    return int(options.run(options) or 0)


def _outline(commands: Any) -> None:
    for subcommands in _PARTS.values():
        for name, summary in subcommands.items():
            commands.add_parser(name, help=summary)
    for name, (_, summary) in _PROGRAMS.items():
        commands.add_parser(name, help=summary)


if __name__ == "__main__":
    sys.exit(main())

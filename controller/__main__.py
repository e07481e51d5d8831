"""`python -m controller`: reads the source, then serves nodes until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp import web

from controller import admin, serve
from controller.ca import LEAF_LIFETIME, AuthorityError, load_or_create
from controller.log import set_up
from controller.metrics import Metrics, build_version
from controller.serve import Server
from controller.sources.directory import Directory
from controller.sources.files import Files
from controller.state import Input, State
from controller.tokens import Tokens, TokensError
from controller.translate.settings import Settings
from mesh.identity import SpiffeId
from mesh.resources import Invalid, check

_log = logging.getLogger("controller")

METRICS_PORT = 15014
_GRACE_S = 5.0
# Of a workload's certificate: shorter, an agent that allows for slow clocks would renew it at once; Istio's longest.
_LIFETIMES = timedelta(minutes=2), timedelta(days=90)


class StartError(Exception):
    """The controller cannot start as it was told to; the text names the option, the cause and the cure."""


@dataclass(frozen=True, slots=True)
class Listen:
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Listen:
        """`host:port`, `[v6]:port`; an empty host is every address."""
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdigit() or int(port) > 65535:
            raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
        return cls(host.strip("[]"), int(port))


def arguments(argv: Sequence[str] | None = None, *, prog: str = "python -m controller") -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="The control plane: reads Kubernetes objects, tells each node's agent what concerns it, and signs "
        "the certificates of workloads.",
    )
    parser.add_argument("--source", type=Path, required=True, help="directory of YAML files, watched")
    parser.add_argument("--state", type=Path, required=True, help="directory for ca.key, ca.crt and what must last")
    parser.add_argument(
        "--listen",
        type=Listen.parse,
        default=Listen("", 15012),
        metavar="HOST:PORT",
        help="for agents: configuration and certificates (default: 15012, every address)",
    )
    parser.add_argument("--tokens", type=Path, required=True, help='JSON: {"<node>": "<sha256 hex of its token>"}')
    parser.add_argument("--run", type=Path, required=True, help="directory for admin.sock")
    parser.add_argument("--metrics", type=Listen.parse, metavar="HOST:PORT", help=f"default: {METRICS_PORT}, same host")
    parser.add_argument(
        "--trust-domain", type=_trust_domain, default="cluster.local", help="of all identities (default: %(default)s)"
    )
    parser.add_argument("--cluster", default="Kubernetes", help="its name, in metrics and uids (default: %(default)s)")
    parser.add_argument(
        "--root-namespace",
        default="istio-system",
        help="policies there without a selector are for the whole mesh (default: %(default)s)",
    )
    parser.add_argument(
        "--dns-name", action="append", type=_host, default=[], help="a name or IP nodes reach us by; repeatable"
    )
    parser.add_argument(
        "--certificate-lifetime",
        type=_lifetime,
        default=LEAF_LIFETIME,
        metavar="SECONDS",
        help="of workloads; agents renew at about half of it (default: a day, as Istio's DEFAULT_WORKLOAD_CERT_TTL)",
    )
    parser.add_argument(
        "--log-level", default="info", choices=["debug", "info", "warning", "error"], help="default: %(default)s"
    )
    return parser.parse_args(argv)


def _trust_domain(text: str) -> str:
    try:
        return SpiffeId.parse(str(SpiffeId(text, "n", "s"))).trust_domain
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a trust domain: [a-z0-9._-], at most 255") from None


def _lifetime(text: str) -> timedelta:
    shortest, longest = _LIFETIMES
    lifetime = timedelta(seconds=int(text)) if text.isascii() and text.isdigit() and len(text) < 10 else timedelta()
    if not shortest <= lifetime <= longest:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 120 to 7776000 (90 days)")
    return lifetime


def _host(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        check.dns_subdomain("", text.removeprefix("*.").lower())
    except Invalid:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a DNS name nor an IP address") from None
    return text


def _prepare(given: argparse.Namespace) -> None:
    """Make the directories that are ours; StartError. Without its source the controller must not start: it would tell
    the nodes that there is nothing."""
    for option, path in (("--state", given.state), ("--run", given.run)):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(f"{option} {path} cannot be made: {error.strerror}; name a writable directory") from error
    try:
        next(given.source.iterdir(), None)
    except OSError as error:
        raise StartError(f"--source {given.source}: {error.strerror}; name a directory of YAML files") from error


async def run(given: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT. Raises StartError, AuthorityError, TokensError or OSError if it cannot start."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = Settings(trust_domain=given.trust_domain, cluster_id=given.cluster, root_namespace=given.root_namespace)
    _prepare(given)
    authority = load_or_create(given.state, trust_domain=given.trust_domain, now=datetime.now(UTC))
    tokens = Tokens(given.tokens)
    state = State(settings, Metrics(), given.state / "reports.json")
    directory = Directory(given.source, Files(), keep=given.state / "last-good")
    await asyncio.to_thread(directory.scan)
    _take(directory, state)
    await state.refresh()

    server = Server(state, authority, tokens, lifetime=given.certificate_lifetime)
    context = serve.tls_context()
    names = _names(given)
    async with AsyncExitStack() as stack:
        serve.load_identity(context, authority, names, given.state)
        try:
            listener = await server.listen(given.listen.host or None, given.listen.port, context)
        except OSError as error:
            raise _cannot_listen("--listen", given.listen, error) from error
        stack.push_async_callback(listener.close)
        metrics = given.metrics or Listen(given.listen.host, METRICS_PORT)
        await _open(stack, admin.metrics_application(state), metrics)
        await _open_socket(stack, admin.status_application(state), given.run / "admin.sock")
        where = {"listen": f"{given.listen.host}:{given.listen.port}", "objects": len(state.input.objects)}
        _log.info("ready", extra=where | {"version": build_version()})
        async with asyncio.TaskGroup() as tasks:
            forever = [
                tasks.create_task(directory.follow(lambda: _take(directory, state)), name="source"),
                tasks.create_task(state.run(), name="translate"),
                tasks.create_task(serve.keep_identity(context, authority, names, given.state), name="identity"),
            ]
            await stop.wait()
            _log.info("stopping")
            for task in forever:
                task.cancel()


def _take(directory: Directory, state: State) -> None:
    """Give the state what the files say; log what is newly refused."""
    before = {str(error) for error in state.input.refusals}
    refusals = tuple(directory.files.refusals())
    for error in refusals:
        if str(error) not in before:
            _log.warning("refused", extra={"error": str(error)[:1000]})
    state.take(Input(objects=directory.files.objects(), files=directory.files.owners(), refusals=refusals))


async def _open(stack: AsyncExitStack, app: web.Application, at: Listen) -> None:
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_GRACE_S)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, at.host or None, at.port)
    try:
        await site.start()
    except OSError as error:
        raise _cannot_listen("--metrics", at, error) from error


def _cannot_listen(option: str, at: Listen, error: OSError) -> StartError:
    cause = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    return StartError(f"{option} {at.host}:{at.port}: {cause}; name an address of this machine and a port that is free")


async def _open_socket(stack: AsyncExitStack, app: web.Application, path: Path) -> None:
    path.unlink(missing_ok=True)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_GRACE_S)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.UnixSite(runner, str(path)).start()
    path.chmod(0o600)


def _names(given: argparse.Namespace) -> list[str]:
    """What the controller's certificate says: --dns-name, the address it listens on, loopback."""
    names = [*given.dns_name, "localhost", "127.0.0.1", "::1"]
    try:
        if not ipaddress.ip_address(given.listen.host).is_unspecified:
            names.append(given.listen.host)
    except ValueError:
        if given.listen.host:
            names.append(given.listen.host)
    return names


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m controller") -> int:
    """Run until SIGTERM; the exit code. `prog` is what the usage message calls us."""
    given = arguments(argv, prog=prog)
    set_up(given.log_level)
    try:
        asyncio.run(run(given))
    except (StartError, AuthorityError, TokensError, OSError) as error:
        _log.error("the controller cannot run", extra={"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

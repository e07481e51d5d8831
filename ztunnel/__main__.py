"""`python -m ztunnel`: start the node agent. See `--help`, and ztunnel.config for the settings."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import bpf
from bpf import preflight, selftest
from ztunnel.admin.listener import is_listening
from ztunnel.agent import Agent
from ztunnel.config import Config, parse
from ztunnel.handover.giver import NotResumed
from ztunnel.handover.heir import SOCKET, Inheritance, NotTaken, claim
from ztunnel.log import set_up
from ztunnel.premises import forget_earlier_boot, hold, open_files_limit, prepare_run_directory
from ztunnel.pump import Limits, Maps, PumpEngine

log = logging.getLogger("ztunnel")

_SAME_SIGNAL_SECONDS = 0.5  # timeout(1), and who ends a whole process group, send it twice


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m ztunnel") -> int:
    """Run until SIGTERM; the exit code. `prog` is what the usage message calls us."""
    config = parse(sys.argv[1:] if arguments is None else arguments, os.environ, prog=prog)
    set_up(config.log_level)
    try:
        prepare_run_directory(config.run)
        if config.unload:
            return _unload(config)
        accelerate = _ready_to_serve(config)
        beginning = hold(config.run)
        forget_earlier_boot(config.run)
        inherited = claim(config.run)
        kernel = bpf.Kernel.open(
            config.bpf,
            cgroup=config.cgroup,
            agent_cgroup=config.agent_cgroup,
            kubelet_cgroup=config.kubelet_cgroup,
            accelerate=accelerate,
            direct=config.direct == "on",
            succeeding=inherited is not None,
        )
    except (OSError, bpf.PreflightError, NotTaken) as error:
        log.error("%s", error)
        return 1
    try:
        return asyncio.run(_serve(config, kernel, accelerate, inherited, partial(os.close, beginning)))
    finally:
        kernel.close()


def _unload(config: Config) -> int:
    """Nothing of the kernel side is opened: it may be what cannot be opened any more."""
    if is_listening(config.run / SOCKET):
        log.error("--unload: an agent runs with --run %s; end it first, its pods would be in plaintext", config.run)
        return 1
    bpf.pin.remove(config.bpf)
    return 0


def _ready_to_serve(config: Config) -> bool:
    """What can take long or fail is done before the agent that runs, if one does, is asked for what it has. Whether
    bytes may go past TCP: not where this kernel gets them wrong."""
    preflight.check(config.bpf, config.cgroup, config.agent_cgroup, config.kubelet_cgroup)
    preflight.runs_in(config.agent_cgroup)
    bpf.compile.build()
    if not config.accelerate:
        return False
    if not (wrong := selftest.prove(config.bpf, config.cgroup, config.agent_cgroup)):
        return True
    log.warning("direct connections go by TCP, the self-test of their acceleration failed: %s", wrong)
    return False


def _limits(config: Config) -> Limits:
    limits = Limits.with_descriptors(open_files_limit())
    return limits if config.stay_awake == "on" else replace(limits, awake=0.0)


async def _serve(
    config: Config,
    kernel: bpf.Kernel,
    accelerate: bool,
    inherited: Inheritance | None,
    begun: Callable[[], None],
) -> int:
    engine = partial(
        PumpEngine,
        limits=_limits(config),
        threads=config.threads,
        accelerated=accelerate,
        maps=Maps.of(kernel.captured, kernel.announced),
    )
    agent = Agent(config, kernel, engine, version=_version(), inherited=inherited, begun=begun)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _once_then_exit(agent.stop, number))
    code = 0
    try:
        await agent.run()
    except* (NotTaken, NotResumed) as group:
        log.error("%s", group.exceptions[0])
        code = 1
    return code


def _once_then_exit(stop: Callable[[], None], number: int) -> Callable[[], None]:
    """The first signal begins to drain, a later one does not wait for it."""
    asked: float | None = None

    def handle() -> None:
        nonlocal asked
        now = time.monotonic()
        if asked is None:
            asked = now
            stop()
        elif now - asked > _SAME_SIGNAL_SECONDS:
            log.warning("%s again: not waiting for open connections", signal.Signals(number).name)
            os._exit(1)

    return handle


def _version() -> str:
    try:
        return version("gossamer-mesh")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())

"""What a target begins with: the modules that were built for it, the engine's settings, three identities."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from mesh.identity import SpiffeId

# Small, so that an input of a few hundred bytes reaches every one of them.
SMALL = {
    "connections": 40,
    "connections_per_pod": 24,
    "tunnels_per_pod": 5,
    "tunnels_per_peer": 4,
    "handshakes_per_pod": 3,
    "handshakes_per_peer": 2,
    "untold_per_peer": 8,
    "streams_accepted": 6,
    "streams_opened": 4,
    "tunnels_per_key": 2,
    "busy_backlog": 4 << 10,
    "stream_window": 4 << 10,
    "stream_window_max": 32 << 10,
    "window_budget": 48 << 10,
    "connection_window": 96 << 10,
    "socket_backlog": 16 << 10,
    "stream_buffer": 8 << 10,
}


def begin(program: str) -> int:
    """Address of the C function that takes an input; the target is the name of the program."""
    target = Path(program)
    # Under its own name, before anybody imports the one without sanitizers.
    _load("mesh.http2._session", target.parent)
    fuzz = _load("tests.fuzz.fuzz", target.parent)

    import ztunnel.pump.threads as threads
    from mesh import http2
    from tests.unit.ztunnel.pump.authority import Authority
    from ztunnel.pump.limits import Limits

    with mock.patch.object(threads, "Pump", dict):
        settings: Any = threads.begin(Limits(**SMALL, resets=http2.Rate(burst=12, per_second=1000)), 1, False, None)
    authority = Authority.new()
    ours, theirs, strangers = (
        authority.issue(SpiffeId(domain, "default", name))
        for domain, name in (("cluster.local", "ours"), ("cluster.local", "theirs"), ("other.domain", "stranger"))
    )
    fuzz.check_tasks()
    fuzz.check_turns()
    fuzz.check_vigil()
    fuzz.check_waiting()
    fuzz.check_standing()
    fuzz.check_aes()
    spoilt = int(os.environ.get("GOSSAMER_FUZZ_SPOILT", "0"))
    entry = int(fuzz.prepare(target.name, settings, ours, theirs, strangers, spoilt))
    fuzz.check_stock()
    fuzz.check_transit()
    return entry


def _load(name: str, folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name.rpartition('.')[2]}.so")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

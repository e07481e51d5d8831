"""What outlives a stream, a source's hiccup and a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from controller import state as module
from controller.metrics import Metrics
from controller.state import State
from controller.translate.settings import Settings
from mesh.control import PodStatus, Redirection
from mesh.model import TunnelProtocol
from tests.unit.controller.shop import SHOP, WEB, given_input


async def fed(text: str, path: Path | None = None) -> State:
    state = State(Settings(), Metrics(), path)
    state.take(given_input(text))
    await state.refresh()
    return state


def tunnel(state: State) -> TunnelProtocol:
    made = state.translation.entries[f"workload/{WEB}"].workload
    assert made is not None
    return made.tunnel_protocol


ENABLED = PodStatus(uid=WEB, instance="u1", redirection=Redirection.ENABLED)


async def test_what_nodes_reported_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "reports.json"
    state = await fed(SHOP, path)
    assert tunnel(state) is TunnelProtocol.NONE
    assert state.report("n1", ENABLED) == ""
    await state.refresh()
    assert tunnel(state) is TunnelProtocol.HBONE
    assert tunnel(await fed(SHOP, path)) is TunnelProtocol.HBONE


@pytest.mark.parametrize("content", ["", "{", "[]", '{"u1": {}}'])
async def test_an_unreadable_memory_is_no_reason_not_to_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "reports.json"
    path.write_text(content)
    assert tunnel(await fed(SHOP, path)) is TunnelProtocol.NONE


@pytest.mark.parametrize("redirection", [Redirection.PENDING, Redirection.DISABLED])
async def test_only_enabled_is_enabled(redirection: Redirection) -> None:
    state = await fed(SHOP)
    state.report("n1", ENABLED)
    await state.refresh()
    state.report("n1", PodStatus(uid=WEB, instance="u1", redirection=redirection))
    await state.refresh()
    assert tunnel(state) is TunnelProtocol.NONE


async def test_a_pod_that_leaves_the_source_for_a_moment_stays_enrolled(monkeypatch: pytest.MonkeyPatch) -> None:
    state = await fed(SHOP)
    state.report("n1", ENABLED)
    for text in ("", SHOP):
        state.take(given_input(text))
        await state.refresh()
    assert tunnel(state) is TunnelProtocol.HBONE
    # While it is away its node, and no other, may still correct what it said.
    state.take(given_input(""))
    await state.refresh()
    disabled = PodStatus(uid=WEB, instance="u1", redirection=Redirection.DISABLED)
    assert state.report("n2", disabled) == "the pod is not on this node"
    assert state.report("n1", disabled) == ""
    state.take(given_input(SHOP))
    await state.refresh()
    assert tunnel(state) is TunnelProtocol.NONE
    # Not for ever.
    state.report("n1", ENABLED)
    state.take(given_input(""))
    await state.refresh()
    monkeypatch.setattr(module, "_REMEMBER_S", 0.0)
    await state.refresh()
    assert state.reports == {}


async def test_waiters_wake_with_each_translation_and_bursts_coalesce() -> None:
    state = await fed(SHOP)
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(state.run())
        version = state.version
        for number in range(50):
            state.take(given_input(SHOP.replace("10.0.0.1", f"10.0.1.{number}")))
        async with asyncio.timeout(10):
            while True:
                version = await state.newer_than(version)
                made = state.translation.entries[f"workload/{WEB}"].workload
                if made is not None and made.addresses == ("10.0.1.49",):
                    break
        assert version <= 3
        run.cancel()

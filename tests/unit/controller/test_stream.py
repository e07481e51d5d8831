"""What a node gets: differences, one in flight, nothing twice. The session as tables, the stream as transcripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import stream
from controller.metrics import Metrics
from controller.state import State
from controller.stream import Pace, ProtocolError, Session
from controller.translate.settings import Settings
from controller.translate.snapshot import Translation
from mesh.control import Ack, Entry, Hello, Nack, PodStatus, Redirection, Update, decode_from_controller, encode, entry
from mesh.model import Policy, PolicyAction, PolicyScope, Workload
from mesh.resources import ObjectKey
from tests.unit.controller.shop import BOTH, FAR, WEB, given_input

SETTINGS = Settings(trust_domain="td", root_namespace="root")


def workload(name: str, revision: str = "1") -> Entry:
    return entry(Workload(uid=name, name=name, namespace="n", canonical_revision=revision))


def policy(name: str) -> Entry:
    return entry(Policy(name=name, namespace="n", scope=PolicyScope.NAMESPACE, action=PolicyAction.DENY))


def translation(*entries: Entry) -> Translation:
    return Translation(settings=SETTINGS, entries={e.resource.key: e for e in entries})


def known(*entries: Entry) -> Mapping[str, str]:
    return {e.resource.key: e.hash for e in entries}


def sent(update: Update | None) -> tuple[set[str], set[str]] | None:
    return None if update is None else ({e.resource.key for e in update.upserts}, set(update.removes))


A1, A2, B1 = workload("a"), workload("a", "2"), workload("b")


def test_hello_gets_the_difference() -> None:
    session = Session({**known(A1), "workload/gone": "h"})
    assert sent(session.next_update(translation(A2, B1))) == ({"workload/a", "workload/b"}, {"workload/gone"})


def test_a_node_that_has_everything_gets_an_empty_first_update_and_then_nothing() -> None:
    session = Session(known(A1, B1))
    update = session.next_update(translation(A1, B1))
    assert sent(update) == (set(), set())
    assert update is not None
    assert (update.trust_domain, update.root_namespace) == ("td", "root")
    session.answered(update.nonce, {})
    assert session.next_update(translation(A1, B1)) is None


def test_only_what_changed_is_sent_and_changes_coalesce() -> None:
    session = Session({})
    first = session.next_update(translation(A1))
    assert first is not None
    session.answered(first.nonce, {})
    # a and b came, then b went again, all while the first was in flight
    second = session.next_update(translation(A2))
    assert sent(second) == ({"workload/a"}, set())
    assert second is not None
    session.answered(second.nonce, {})
    third = session.next_update(translation())
    assert sent(third) == (set(), {"workload/a"})


def test_a_refused_resource_is_not_sent_again_until_it_changes() -> None:
    session = Session(known(A1))
    update = session.next_update(translation(A2, B1))
    assert update is not None
    session.answered(update.nonce, {"workload/a": "no"})
    assert session.refused == {"workload/a": "no"}
    assert session.next_update(translation(A2, B1)) is None
    assert session.next_update(translation(A1, B1)) is None, "the node still has what it had"
    assert session.refused == {}
    assert sent(session.next_update(translation(workload("a", "3"), B1))) == ({"workload/a"}, set())


def test_a_refused_removal() -> None:
    session = Session(known(A1))
    update = session.next_update(translation())
    assert update is not None
    session.answered(update.nonce, {"workload/a": "busy"})
    assert session.next_update(translation()) is None
    assert sent(session.next_update(translation(A2))) == ({"workload/a"}, set())


@pytest.mark.parametrize("nonce", [0, 2, -1])
def test_an_answer_to_nothing_is_a_protocol_error(nonce: int) -> None:
    session = Session({})
    session.next_update(translation(A1))
    with pytest.raises(ProtocolError):
        session.answered(nonce, {})


def test_one_in_flight() -> None:
    session = Session({})
    session.next_update(translation(A1))
    with pytest.raises(RuntimeError):
        session.next_update(translation(A2))


def test_a_huge_first_update_goes_in_pieces_policies_first_and_removals_last() -> None:
    entries = [workload(f"w{i}") for i in range(1500)] + [policy(f"p{i}") for i in range(10)]
    session = Session({"workload/gone": "h"})
    pieces = []
    while (update := session.next_update(translation(*entries), limit=100_000)) is not None:
        assert len(encode(update)) < 110_000
        pieces.append(update)
        session.answered(update.nonce, {})
    assert len(pieces) > 3
    order = [e.resource.key for update in pieces for e in update.upserts]
    assert sorted(order) == sorted(e.resource.key for e in entries)
    assert all(key.startswith("policy/") for key in order[:10])
    assert [bool(update.removes) for update in pieces] == [False] * (len(pieces) - 1) + [True]


states = st.dictionaries(st.sampled_from("abcde"), st.sampled_from("123"), max_size=5)


@settings(deadline=None)  # the machine may be busy
@given(states, st.lists(st.tuples(states, st.sets(st.sampled_from("abcde"))), max_size=6), states)
def test_whatever_happened_the_node_ends_with_the_newest_state(
    held: dict[str, str], history: list[tuple[dict[str, str], set[str]]], last: dict[str, str]
) -> None:
    """A model of a node that refuses some resources for a while, and accepts everything in the end."""
    node = {e.resource.key: e.hash for e in (workload(k, v) for k, v in held.items())}
    session = Session(node)
    for wanted, refuses in [*history, (last, set())]:
        target = translation(*(workload(k, v) for k, v in wanted.items()))
        update = session.next_update(target)
        if update is None:
            continue
        errors = {f"workload/{name}": "no" for name in refuses}
        for e in update.upserts:
            assert node.get(e.resource.key) != e.hash, "nothing is sent that the node has"
            if e.resource.key not in errors:
                node[e.resource.key] = e.hash
        for key in update.removes:
            assert key in node
            if key not in errors:
                del node[key]
        session.answered(update.nonce, errors)
    expected = {key: e.hash for key, e in target.entries.items()}
    unresolved = session.refused.keys()
    assert {k: v for k, v in node.items() if k not in unresolved} == {
        k: v for k, v in expected.items() if k not in unresolved
    }


# Transcripts: a real State, a socket made of two queues.


class Node:
    """The other end of a stream."""

    def __init__(self) -> None:
        self.to_controller: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.from_controller: asyncio.Queue[Update] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (data := await self.to_controller.get()) is not None:
            yield data

    async def send(self, data: bytes) -> None:
        await self.from_controller.put(decode_from_controller(data))

    def say(self, message: Hello | Ack | Nack | PodStatus | bytes | None) -> None:
        self.to_controller.put_nowait(message if isinstance(message, bytes | None) else encode(message))

    async def hears(self) -> Update:
        async with asyncio.timeout(10):
            return await self.from_controller.get()


async def state_of(text: str, tmp_path: Path | None = None) -> State:
    state = State(Settings(), Metrics(), tmp_path / "reports.json" if tmp_path else None)
    state.take(given_input(text))
    await state.refresh()
    return state


async def test_a_conversation() -> None:
    state = await state_of(BOTH)
    node = Node()
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(state.run())
        served = tasks.create_task(stream.serve(node, "n1", state))
        node.say(Hello(node="n1", version="7"))
        first = await node.hears()
        assert sent(first) == ({f"workload/{WEB}", f"workload/{FAR}"}, set())
        assert state.nodes["n1"].connected
        # Changes while the first is in flight wait for the ack, and come as one.
        state.take(given_input(BOTH.replace("10.0.0.1", "10.0.0.3")))
        await state.newer_than(1)
        state.take(given_input(BOTH.replace("10.0.0.1", "10.0.0.4")))
        await state.newer_than(2)
        assert node.from_controller.empty()
        node.say(Ack(nonce=first.nonce))
        second = await node.hears()
        assert [e.workload.addresses for e in second.upserts if e.workload] == [("10.0.0.4",)]
        # A nack becomes known, and the resource is not sent again.
        node.say(Nack(nonce=second.nonce, errors={f"workload/{WEB}": "cannot"}))
        node.say(PodStatus(uid=WEB, instance="u1", redirection=Redirection.ENABLED))
        third = await node.hears()
        assert [(e.workload.tunnel_protocol, e.workload.capture) for e in third.upserts if e.workload] == [
            ("HBONE", True)
        ]
        assert state.nodes["n1"].rejected == {}, "a changed resource is another chance"
        node.say(Nack(nonce=third.nonce, errors={f"workload/{WEB}": "still cannot"}))
        state.take(given_input(BOTH.replace("10.0.0.1", "10.0.0.4").replace("10.0.0.2", "10.0.0.5")))
        fourth = await node.hears()
        assert sent(fourth) == ({f"workload/{FAR}"}, set())
        assert list(state.rejections()) == [(ObjectKey("Pod", "shop", "web"), "n1", "still cannot")]
        node.say(None)
        assert await served == "closed by the node"
        run.cancel()


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([None], "no hello"),
        ([b"{}"], "not a hello"),
        ([b"\xff"], "not a hello"),
        ([Hello(node="n2", version="")], "the first message is not this node's hello"),
        ([Ack(nonce=1)], "the first message is not this node's hello"),
        ([Hello(node="n1", version=""), Hello(node="n1", version="")], "a second hello"),
        ([Hello(node="n1", version=""), b"[]"], "a message that is not of the protocol"),
        ([Hello(node="n1", version=""), Ack(nonce=99)], "nonce 99"),
    ],
)
async def test_a_node_that_breaks_the_protocol_is_dropped(messages: list[Hello | Ack | bytes | None], why: str) -> None:
    state = await state_of(BOTH)
    node = Node()
    for message in messages:
        node.say(message)
    async with asyncio.timeout(10):
        assert why in await stream.serve(node, "n1", state)


@pytest.mark.parametrize(
    ("status", "ignored"),
    [
        (PodStatus(uid=WEB, instance="u1", redirection=Redirection.ENABLED), ""),
        (PodStatus(uid=FAR, instance="u2", redirection=Redirection.ENABLED), "the pod is not on this node"),
        (PodStatus(uid="nobody", instance="u1", redirection=Redirection.ENABLED), "the pod is not on this node"),
        (
            PodStatus(uid=WEB, instance="old", redirection=Redirection.ENABLED),
            "another instance of this pod is current",
        ),
        (PodStatus(uid=WEB, instance="", redirection=Redirection.ENABLED), "another instance of this pod is current"),
        (PodStatus(uid=WEB, instance="u2", redirection=Redirection.ENABLED), "another instance of this pod is current"),
    ],
)
async def test_a_node_speaks_of_its_own_pods_only(status: PodStatus, ignored: str) -> None:
    state = await state_of(BOTH)
    assert state.report("n1", status) == ignored
    assert set(state.reports) == (set() if ignored else {status.instance})


async def test_a_slow_node_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "ACK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(stream, "SEND_TIMEOUT_S", 0.05)
    state = await state_of(BOTH)
    silent = Node()
    silent.say(Hello(node="n1", version=""))
    assert await stream.serve(silent, "n1", state) == "the node does not answer"

    class Deaf(Node):
        async def send(self, data: bytes) -> None:
            await asyncio.Event().wait()

    deaf = Deaf()
    deaf.say(Hello(node="n1", version=""))
    assert await stream.serve(deaf, "n1", state) == "the node does not read"


async def test_pace_delays_who_is_too_fast() -> None:
    pace = Pace(rate=2.0, burst=5.0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(5):
        await pace.one()
    assert loop.time() - began < 1.5, "that many need not wait for two tokens per second"
    await pace.one()
    assert loop.time() - began > 0.4

"""What two agents say: there and back, and a version that follows the schema."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from mesh.direct import Mode
from mesh.identity import SpiffeId
from mesh.model import SocketAddress
from ztunnel.handover import message
from ztunnel.handover.message import (
    VERSION,
    Answer,
    Ask,
    Certificate,
    DirectKey,
    DirectState,
    DirectTarget,
    Estate,
    Message,
    Outcome,
    PodEstate,
    Released,
    Taken,
    Withdrawn,
    decode,
    encode,
)
from ztunnel.older import OlderConnection
from ztunnel.orders import Credentials

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
CREDENTIALS = Credentials(
    identity=SpiffeId("cluster.local", "shop", "web"), chain=(b"leaf", b"\xff\0"), key=b"\0key", roots=(b"root",)
)
OLDER = OlderConnection(
    pod="i",
    inbound=True,
    local=SocketAddress("10.0.0.1", 80),
    remote=SocketAddress("fd00::2", 4000),
    family=10,
    id=bytes(range(48)),
)
DIRECT = DirectState(
    sources=("a", "b"),
    targets=(DirectTarget(instance="a", mode=Mode.LISTED, accelerate=False),),
    permitted=(DirectKey(source="b", destination="a", port=80),),
)


@pytest.mark.parametrize(
    "said",
    [
        Ask(version=VERSION),
        Answer(outcome=Outcome.YOURS),
        Answer(outcome=Outcome.END_FIRST, why="it is stopping"),
        Estate(
            layout="0a1b",
            holdings=b"{}",
            synced=True,
            certificates=(Certificate(credentials=CREDENTIALS, renew_at=NOW),),
            direct=DIRECT,
            sockets=("admin", "metrics"),
            pods=2,
        ),
        Estate(layout="", holdings=b"", synced=False, certificates=(), direct=None, sockets=(), pods=0),
        PodEstate(instance="i", present=(True, False, True, False, True, False), reuse="2", older=(OLDER,)),
        Taken(),
        Released(),
        Withdrawn(why="it took too long"),
    ],
    ids=lambda said: type(said).__name__,
)
def test_there_and_back(said: Message) -> None:
    assert decode(encode(said)) == said


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"\x81\xa4type\xa5other", encode(Ask(version="x"))[:-1]])
def test_anything_else_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)


def test_what_asks_and_answers_never_changes() -> None:
    """Agents of any two versions must understand each other as far as this."""
    assert msgspec.msgpack.decode(encode(Ask(version="1-x"))) == {"type": "ask", "version": "1-x"}
    answer = Answer(outcome=Outcome.END_FIRST, why="w")
    assert msgspec.msgpack.decode(encode(answer)) == {"type": "answer", "outcome": "end first", "why": "w"}


def test_another_schema_is_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    class More(PodEstate, frozen=True, kw_only=True, tag="pod"):
        more: int

    assert message._version() == VERSION
    monkeypatch.setattr(message, "Message", Ask | Answer | Estate | More | Taken | Released | Withdrawn)
    assert message._version() != VERSION

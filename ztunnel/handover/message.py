"""What two agents say to each other, as MessagePack.

`Ask` and `Answer` never change. The others change with the types in them, and VERSION changes by itself when they do;
REVISION is for a change of meaning.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from enum import StrEnum

import msgspec

from mesh.direct import Mode
from ztunnel.older import OlderConnection
from ztunnel.orders import Credentials

REVISION = 1


class Outcome(StrEnum):
    YOURS = "yours"
    END_FIRST = "end first"


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag="ask"):
    """May I take over?"""

    version: str


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag="answer"):
    """END_FIRST: the old agent drains as if told to stop; the end of the connection is its end."""

    outcome: Outcome
    why: str = ""


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """With its key. The rest of `csr.Held` is read from the leaf."""

    credentials: Credentials
    renew_at: datetime


class DirectTarget(msgspec.Struct, frozen=True, kw_only=True):
    instance: str
    mode: Mode
    accelerate: bool


class DirectKey(msgspec.Struct, frozen=True, kw_only=True):
    source: str
    destination: str
    port: int


class DirectState(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel was told, under the generation that is in force; instances."""

    sources: tuple[str, ...]
    targets: tuple[DirectTarget, ...]
    permitted: tuple[DirectKey, ...]


class Estate(msgspec.Struct, frozen=True, kw_only=True, tag="estate"):
    """What is one per agent. The descriptors that come with it are listeners, in the order of `sockets`."""

    layout: str  # of the maps in the kernel: `direct` is true of no other
    holdings: bytes  # as one Update of mesh.control
    synced: bool
    certificates: tuple[Certificate, ...]
    direct: DirectState | None
    sockets: tuple[str, ...]
    pods: int  # how many PodEstate follow


class PodEstate(msgspec.Struct, frozen=True, kw_only=True, tag="pod"):
    """One enrolled pod. With it come the descriptors of its listeners: those of the fields of `orders.Listeners` that
    are `present`."""

    instance: str
    present: tuple[bool, ...]
    reuse: str  # the pod's own net.ipv4.tcp_tw_reuse, for when it leaves; empty: not changed
    older: tuple[OlderConnection, ...]


class Taken(msgspec.Struct, frozen=True, kw_only=True, tag="taken"):
    """Every listener is served by the new agent."""


class Released(msgspec.Struct, frozen=True, kw_only=True, tag="released"):
    """And by it alone."""


class Withdrawn(msgspec.Struct, frozen=True, kw_only=True, tag="withdrawn"):
    """The old agent goes on; the new one is to end."""

    why: str


Message = Ask | Answer | Estate | PodEstate | Taken | Released | Withdrawn

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def _version() -> str:
    schema = msgspec.json.encode(msgspec.json.schema(Message), order="deterministic")
    return f"{REVISION}-{hashlib.blake2b(schema, digest_size=8).hexdigest()}"


VERSION = _version()


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    """ValueError names the path and the cause."""
    return _decoder.decode(data)

"""A client and a server joined by lists of bytes, and the frames that went between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from hyperframe.frame import Frame

from mesh.http2 import Connection, Event, Limits, Settings

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CONNECT = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.7:8080")]
OK = [(b":status", b"200")]

E = TypeVar("E")


def frames(data: bytes) -> list[Frame]:
    """Parse what one side sent; a client's preface is skipped."""
    data = data.removeprefix(PREFACE)
    found = []
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data)[:9])
        frame.parse_body(memoryview(data)[9 : 9 + length])
        found.append(frame)
        data = data[9 + length :]
    return found


def only(events: list[Event], kind: type[E]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


@dataclass(slots=True, kw_only=True)
class Pair:
    client: Connection
    server: Connection
    at_client: list[Event] = field(default_factory=list)
    at_server: list[Event] = field(default_factory=list)
    now: float = 0.0

    def exchange(self) -> None:
        """Carry bytes until both are silent."""
        while True:
            up, down = self.client.pull(), self.server.pull()
            self.at_client += self.client.events()
            self.at_server += self.server.events()
            if not up and not down:
                return
            self.at_server += self.server.receive(up, self.now)
            self.at_client += self.client.receive(down, self.now)

    def seen(self) -> tuple[list[Event], list[Event]]:
        """(client's, server's) events since the last time."""
        self.exchange()
        events = self.at_client, self.at_server
        self.at_client, self.at_server = [], []
        return events


def pair(
    *,
    client: Settings | None = None,
    server: Settings | None = None,
    limits: Limits | None = None,
) -> Pair:
    """Two connections whose SETTINGS have crossed."""
    limits = limits or Limits()
    made = Pair(
        client=Connection(client=True, settings=client or Settings(), limits=limits),
        server=Connection(client=False, settings=server or Settings(), limits=limits),
    )
    made.seen()
    return made


def opened(made: Pair) -> int:
    """A CONNECT stream with its 200."""
    stream = made.client.request(CONNECT)
    made.exchange()
    made.server.respond(stream, OK)
    made.seen()
    return stream

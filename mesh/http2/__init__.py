"""A sans-io HTTP/2 connection over libnghttp2: bytes in -> events, commands -> bytes out.

settings     Settings we announce, Limits we hold the peer to (with Rate, a token bucket)
events       what a connection reports
errors       LocalProtocolError, StreamGone: the caller's fault; a peer's fault is an event
_connection  Connection, the Python face
_session     the same connection as a C struct with `noexcept nogil` functions, for compiled code (cimport it)
_inbound     what the session does with what arrives: events, rates, violations
_outbound    what it does with what leaves: whose turn it is, framing
_stream      buffers, streams, queues of the session
_nghttp2     libnghttp2's declarations

    connection = Connection(client=True, settings=Settings(), limits=Limits())
    stream = connection.request([(b":method", b"CONNECT"), (b":authority", b"10.0.0.7:80")])
    connection.write(stream, b"hello")
    send(connection.pull())
    for event in connection.receive(received, now): ...
"""

from mesh.http2._connection import Connection
from mesh.http2.errors import LocalProtocolError, StreamGone
from mesh.http2.events import (
    DataReceived,
    Event,
    GoAwayReceived,
    HeadersReceived,
    PingAck,
    SettingsReceived,
    StreamClosed,
    StreamEnded,
    StreamReset,
    Terminated,
    WindowOpened,
)
from mesh.http2.settings import Limits, Rate, Settings

__all__ = [
    "Connection",
    "DataReceived",
    "Event",
    "GoAwayReceived",
    "HeadersReceived",
    "Limits",
    "LocalProtocolError",
    "PingAck",
    "Rate",
    "Settings",
    "SettingsReceived",
    "StreamClosed",
    "StreamEnded",
    "StreamGone",
    "StreamReset",
    "Terminated",
    "WindowOpened",
]

"""Whose fault it is. What a peer does wrong is never an exception: it is a StreamReset or Terminated event."""


class LocalProtocolError(Exception):
    """The caller asked for what HTTP/2, the peer's settings or our own limits do not allow. Nothing was changed."""


class StreamGone(LocalProtocolError):
    """The stream is not open (any more): its StreamClosed was, or is about to be, delivered."""

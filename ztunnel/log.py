"""The agent's own log lines, in the shape of the access log's beside them: time in UTC, level, where, what."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

_LEVELS = {"WARNING": "warn"}  # the other names are Python's in lower case, as ztunnel prints them


class Lines(logging.Formatter):
    """`2026-01-02T03:04:05.678901Z<TAB>info<TAB>ztunnel.sync<TAB>…`; a traceback stands below its line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        level = _LEVELS.get(record.levelname, record.levelname.lower())
        return f"{when}\t{level}\t{record.name}\t{record.message}"


def set_up(level: str) -> None:
    """Lines of this level (debug, info, warn, error) and above go to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(level={"warn": "WARNING"}.get(level, level.upper()), handlers=[handler])
    # Its line per message would bury the agent's own.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)

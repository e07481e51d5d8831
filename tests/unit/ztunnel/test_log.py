"""The agent's log lines: the same columns as the access log's, in UTC whatever the machine's time zone."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from ztunnel.log import Lines

MOMENT = 1767323045.678901  # 2026-01-02T03:04:05.678901Z


def record(level: int, message: str, *arguments: object) -> logging.LogRecord:
    made = logging.LogRecord("ztunnel.sync", level, __file__, 1, message, arguments, None)
    made.created = MOMENT
    return made


@pytest.mark.parametrize(
    ("level", "name"),
    [(logging.DEBUG, "debug"), (logging.INFO, "info"), (logging.WARNING, "warn"), (logging.ERROR, "error")],
)
def test_a_line(level: int, name: str) -> None:
    said = Lines().format(record(level, "connected, %d resources", 3))
    assert said == f"2026-01-02T03:04:05.678901Z\t{name}\tztunnel.sync\tconnected, 3 resources"


SCRIPT = """
import logging
from ztunnel.log import set_up
set_up("warn")
log = logging.getLogger("a")
log.info("not this")
log.warning("this")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("that")
"""


def test_time_is_utc_whatever_the_zone_and_a_traceback_stands_below_its_line() -> None:
    environment = os.environ | {"TZ": "Asia/Kolkata"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    first, second, *below = done.stderr.splitlines()
    when, *said = first.split("\t")
    assert said == ["warn", "a", "this"]
    assert abs((datetime.fromisoformat(when) - datetime.now(UTC)).total_seconds()) < 600
    assert second.split("\t")[1:] == ["error", "a", "that"]
    assert below[0].startswith("Traceback") and below[-1].startswith("ZeroDivisionError")

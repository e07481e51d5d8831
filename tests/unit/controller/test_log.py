"""One record, one line, whatever is in it."""

from __future__ import annotations

import logging

import pytest

from controller.log import Lines


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("n1", "node=n1"),
        ("a b", 'node="a b"'),
        ("a\nb", 'node="a\\nb"'),
        ("\x1b[31m", 'node="\\u001b[31m"'),
        (7, "node=7"),
    ],
)
def test_a_record_is_one_line(value: object, text: str) -> None:
    record = logging.makeLogRecord({"msg": "hello", "levelname": "WARNING", "name": "x", "node": value, "empty": ""})
    line = Lines().format(record)
    assert line.endswith(f"Z\twarning\tx\thello\t{text}")
    assert len(line.splitlines()) == 1


def test_a_traceback_stays_on_the_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "m", "levelname": "ERROR", "name": "x"})
        record.exc_info = (type(error), error, error.__traceback__)
    assert len(Lines().format(record).splitlines()) == 1

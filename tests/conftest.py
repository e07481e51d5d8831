"""A skip hides what was not tested: with GOSSAMER_NO_SKIPS=1, as CI sets it, one skip fails the run. What is started
can be interrupted, however the run itself was."""

from __future__ import annotations

import os
import signal

import pytest


def pytest_configure() -> None:
    """A shell that starts a run in the background has it ignore SIGINT; all that the run starts would do so too."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("GOSSAMER_NO_SKIPS") != "1":
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    if skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line(f"{len(skipped)} skipped: a skipped test is a failed test", red=True)

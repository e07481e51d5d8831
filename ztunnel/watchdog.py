"""Whether those who carry the agent go on: the threads of the engine, and the event loop that decides.

A thread of Python's own looks once a second. Who has had something to do for a number of looks and did not get on is
stuck: that is logged, counted, makes the agent unready and fails its liveness probe, so that whoever started the agent
starts it again. Looks are counted, not seconds: an agent that was stopped as a whole (SIGSTOP, a frozen container) is
not at fault. Who has nothing to do is not woken.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

_log = logging.getLogger(__name__)

EVENT_LOOP = "event-loop"
LOOKS = 10
SECONDS = 1.0  # between two of them

Pulse = tuple[int, bool]  # as in Engine.pulses


@dataclass(slots=True)
class Standstill:
    """Who has stood still for how many looks, by name."""

    looks: dict[str, int] = field(default_factory=dict)
    _last: dict[str, int] = field(default_factory=dict)

    def look(self, pulses: Mapping[str, Pulse]) -> None:
        stood = {
            name: self.looks.get(name, 0) + 1 if busy and self._last.get(name) == steps else 0
            for name, (steps, busy) in pulses.items()
        }
        self.looks, self._last = stood, {name: steps for name, (steps, _) in pulses.items()}

    def stuck(self, most: int) -> Sequence[str]:
        return [name for name, looks in self.looks.items() if looks >= most]


class Watchdog:
    """`stuck` may be read at any time."""

    def __init__(self, pulses: Callable[[], Mapping[str, Pulse]], *, seconds: float = SECONDS) -> None:
        self._pulses, self._seconds = pulses, seconds
        self._over = threading.Event()
        self._standstill = Standstill()
        self._beats, self._asked = 0, False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self.stuck: Sequence[str] = ()

    def start(self) -> None:
        """From the event loop."""
        self._loop, self._loop_thread = asyncio.get_running_loop(), threading.get_ident()
        self._thread.start()

    def stop(self) -> None:
        """Before the event loop is closed."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            self._look()

    def _beat(self) -> None:
        self._beats, self._asked = self._beats + 1, False

    def _look(self) -> None:
        assert self._loop is not None
        self._standstill.look({**self._pulses(), EVENT_LOOP: (self._beats, self._asked)})
        if not self._asked:
            self._asked = True
            self._loop.call_soon_threadsafe(self._beat)
        stuck = self._standstill.stuck(LOOKS)
        for name in stuck:
            if name not in self.stuck:
                self._tell(name)
        for name in self.stuck:
            if name not in stuck:
                _log.warning("thread %s goes on", name)
        self.stuck = stuck

    def _tell(self, name: str) -> None:
        if name == EVENT_LOOP:
            frame = sys._current_frames().get(self._loop_thread)
            where = "".join(traceback.format_stack(frame)) if frame is not None else ""
            meaning, more = "new connections are not decided", f"; it is at\n{where.rstrip()}"
        else:
            meaning, more = "connections that it serves stand still", ""
        _log.error(
            "thread %s is stuck: it has something to do and did not get on for %d looks, %g s apart; %s. Direct "
            "connections go on. :15021/healthz/live says so: the liveness probe, or you, start the agent again%s",
            name, LOOKS, self._seconds, meaning, more,
        )  # fmt: skip

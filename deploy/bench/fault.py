"""Why a benchmark stopped."""

from __future__ import annotations


class BenchError(Exception):
    """A measurement that cannot be trusted or could not be made; the message says which and why."""

"""What the lab says when it cannot do what it was asked."""

from __future__ import annotations


class LabError(Exception):
    """A message for a person: the object, the field, the cause and the cure. The command line exits with 1."""

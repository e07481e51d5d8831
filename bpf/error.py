"""What this kernel and this process lack, and the cure."""

from __future__ import annotations


class PreflightError(Exception):
    """The kernel side cannot run here. `missing` names what is missing, `cure` what to do."""

    def __init__(self, missing: str, cure: str) -> None:
        super().__init__(f"{missing}; {cure}")
        self.missing = missing
        self.cure = cure

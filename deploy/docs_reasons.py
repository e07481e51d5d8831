"""The table of reasons in docs/troubleshooting.md, written from mesh.reason: `python -m deploy.docs_reasons`."""

from __future__ import annotations

from pathlib import Path

from mesh.reason import Reason

PAGE = Path(__file__).resolve().parents[1] / "docs" / "troubleshooting.md"
BEGIN = "<!-- reasons: written by `python -m deploy.docs_reasons` -->"
END = "<!-- end of reasons -->"


def table() -> str:
    """One row per reason, in the order of the numbers. HTTP status: what a refused tunnel request is answered."""
    rows = ["| number | reason | `response_flags` | HTTP | meaning |", "|---|---|---|---|---|"]
    rows += [
        f"| {reason.value} | `{reason.name}` | `{reason.response_flags}` | {reason.http_status} | {reason.hint} |"
        for reason in sorted(Reason)
        if reason is not Reason.OK
    ]
    return "\n".join(rows)


def filled(page: str) -> str:
    """The page with the table as it should be; ValueError if the two markers are not there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name}: the markers {BEGIN!r} and {END!r} are not there")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))

"""The documentation of reasons is the enum's."""

from __future__ import annotations

import pytest

from deploy.docs_reasons import BEGIN, END, PAGE, filled
from mesh.reason import Reason


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text()
    assert page == filled(page), "run `python -m deploy.docs_reasons`"


def test_every_reason_has_a_row_with_a_meaning() -> None:
    rows = {
        cells[2].strip(" `"): cells[5].strip()
        for line in PAGE.read_text().splitlines()
        if len(cells := line.split("|")) == 7
    }
    for reason in Reason:
        if reason is not Reason.OK:
            assert rows.get(reason.name), reason.name


def test_what_stands_between_the_markers_is_replaced_and_nothing_else() -> None:
    assert filled(f"a\n{BEGIN}\nold\n{END}\nb") == filled(f"a\n{BEGIN}{END}\nb")
    assert filled(f"a\n{BEGIN}\nold\n{END}\nb").startswith("a\n")
    assert filled(f"a\n{BEGIN}\nold\n{END}\nb").endswith("\nb")
    with pytest.raises(ValueError, match="markers"):
        filled("a page without")

"""Values that HTTP/2 does not allow are refused where they are written, by name."""

from __future__ import annotations

import pytest

from mesh.http2 import Limits, Rate, Settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("initial_window_size", -1),
        ("initial_window_size", 2**31),
        ("max_frame_size", 16_383),
        ("max_frame_size", 2**24),
        ("max_header_list_size", 0),
        ("max_concurrent_streams", 2**31),
        ("connection_window", 65_534),
        ("connection_window", 2**31),
        ("enable_push", True),
    ],
)
def test_settings(field, value):
    with pytest.raises(ValueError, match=field):
        Settings(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_outbound_buffer", 0),
        ("max_data_frame", 0),
        ("max_data_frame", 2**24),
        ("turn", 0),
        ("turn", 2**24),
        ("max_control_backlog", 0),
        ("max_settings_entries", 0),
        ("max_continuations", -1),
    ],
)
def test_limits(field, value):
    with pytest.raises(ValueError, match=field):
        Limits(**{field: value})


@pytest.mark.parametrize(("burst", "per_second", "field"), [(0, 1.0, "burst"), (1, -1.0, "per_second")])
def test_rate(burst, per_second, field):
    with pytest.raises(ValueError, match=field):
        Rate(burst=burst, per_second=per_second)

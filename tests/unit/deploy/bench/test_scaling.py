"""What was refused is said, never left out."""

from __future__ import annotations

from deploy.bench.scaling import Crowded, Outcome, document, sheets

RATES = {"messages/s": (20_000.0, 0.25), "Gbit/s": (4.5, 0.3), "connections/s": (1200.0, 0.125)}
OUTCOME = Outcome(
    threads={1: RATES, 2: {**RATES, "messages/s": (30_000.0, 0.375)}},
    connections={
        0: Crowded(
            idle_ms_per_s=5.0,
            pss_mib=80.0,
            echo={"p50_us": 500.0, "cpu_proxies_ms_per_10k": 400.0},
            connects={"connects_per_s": 1000.0, "cpu_proxies_ms_per_10k": 6000.0},
        ),
        1024: Crowded(
            idle_ms_per_s=7.0,
            pss_mib=90.0,
            echo={"p50_us": 600.0, "cpu_proxies_ms_per_10k": 500.0},
            connects={"connects_per_s": 900.0, "cpu_proxies_ms_per_10k": 7000.0},
        ),
        10_000: "reset by peer",
    },
)


def test_for_programs() -> None:
    found = document(OUTCOME)
    assert found["threads"][0]["rates"]["Gbit/s"] == {"median": 4.5, "ratio": 0.3}
    assert found["threads"][1]["rates"]["messages/s"] == {"median": 30_000.0, "ratio": 0.375}
    assert [one["connections"] for one in found["connections"]] == [0, 1024, 10_000]
    assert found["connections"][2] == {"connections": 10_000, "refused": "reset by peer"}


def test_for_people() -> None:
    threads, connections = sheets(OUTCOME)
    assert threads.rows[0] == ("messages/s", "20,000 ×0.250", "30,000 ×0.375")
    rows = {first: cells for first, *cells in connections.rows}
    assert rows["KiB for each"] == ["–", "10.0", "refused"]
    assert rows["new connections/s"] == ["1,000", "900", "refused"]
    assert connections.note == "refused: reset by peer"

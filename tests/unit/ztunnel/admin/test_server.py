"""The endpoints as their users meet them: over a real unix socket and real TCP ports."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import socket
import stat
import time
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mesh.reason import Reason
from tests.unit.ztunnel.served import Served, served
from tests.unit.ztunnel.small_agent import PRODUCTPAGE, SmallAgent, certificate, maps, outbound
from ztunnel.admin import listener, server
from ztunnel.metrics.exposition import OPENMETRICS, PROMETHEUS
from ztunnel.metrics.scrape import Scrape


async def over_unix(at: Served, path: str, method: str = "GET") -> tuple[int, str]:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(at.socket))) as client,
        client.request(method, f"http://agent{path}") as response,
    ):
        return response.status, await response.text()


async def over_tcp(at: Served, name: str, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, str]:
    """(status, body as sent, content type)."""
    url = f"http://127.0.0.1:{at.endpoints.bound[name]}{path}"
    async with (
        aiohttp.ClientSession(auto_decompress=False) as client,
        client.request(method, url, headers=headers) as response,
    ):
        return response.status, await response.read(), response.headers.get("Content-Type", "")


async def test_the_socket_is_for_its_owner_alone_and_goes_with_the_agent(tmp_path: Path) -> None:
    async with served(tmp_path) as at:
        assert stat.S_IMODE(at.socket.stat().st_mode) == 0o600
        assert (await over_unix(at, "/status"))[0] == 200
    assert not at.socket.exists()


async def test_the_socket_of_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "admin.sock"))
    async with served(tmp_path) as at:
        assert (await over_unix(at, "/status"))[0] == 200


async def test_the_index_lists_what_answers(tmp_path: Path) -> None:
    async with served(tmp_path) as at:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(at.socket))) as client:
            async with client.get("http://agent/") as response:
                listed = (await response.json())["endpoints"]
            for path in set(listed) - {"/quitquitquit"}:
                async with client.get(f"http://agent{path}") as response:
                    assert response.status == 200, path
                    assert (await response.json())["node"] == "node1"
        assert "/quitquitquit" in listed
        assert b"quitquitquit" not in (await over_tcp(at, "admin", "/"))[1]


async def test_who_asks_for_much_leaves_half_of_the_time_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[tuple[float, float]] = []

    def slow(*_: object) -> dict[str, object]:
        began = time.monotonic()
        time.sleep(0.05)
        spent.append((began, time.monotonic()))
        return {}

    monkeypatch.setattr(server.dump, "config_dump", slow)
    async with served(tmp_path) as at:
        await asyncio.gather(*(over_tcp(at, "admin", "/config_dump") for _ in range(listener.PER_PEER)))
    for (began, ended), (next_, _) in pairwise(sorted(spent)):
        assert next_ - ended >= 0.9 * (ended - began)


async def test_over_tcp_nothing_can_be_changed(tmp_path: Path) -> None:
    async with served(tmp_path) as at:
        assert (await over_tcp(at, "admin", "/config_dump"))[0] == 200
        assert (await over_tcp(at, "admin", "/quitquitquit", "POST"))[0] == 404
        assert (await over_tcp(at, "admin", "/logging?level=debug", "POST"))[0] == 405
        await asyncio.sleep(0)
        assert not at.stopped.is_set()


async def test_quitquitquit_asks_for_a_graceful_stop(tmp_path: Path) -> None:
    async with served(tmp_path) as at:
        assert (await over_unix(at, "/quitquitquit"))[0] == 405
        assert not at.stopped.is_set()
        assert (await over_unix(at, "/quitquitquit", "POST"))[0] == 200
        await asyncio.wait_for(at.stopped.wait(), 10)


async def test_levels_change_while_it_runs(tmp_path: Path) -> None:
    async with served(tmp_path) as at:
        logger = logging.getLogger("tests.served")
        logger.setLevel(logging.INFO)
        assert '"access": "info"' in (await over_unix(at, "/logging"))[1]
        assert (await over_unix(at, "/logging?level=debug&access=error", "POST"))[0] == 200
        assert logger.level == logging.DEBUG
        assert at.access.level == logging.ERROR
        status, said = await over_unix(at, "/logging?level=info&access=loud", "POST")
        assert (status, said) == (400, "'loud' is no level; there are debug, info, warn, error, off\n")
        assert logger.level == logging.DEBUG, "half a change is none"
        assert (await over_unix(at, "/logging?nonsense=1", "POST"))[0] == 400


async def test_readiness_says_what_it_waits_for(tmp_path: Path) -> None:
    async with served(tmp_path) as at:
        assert await over_tcp(at, "readiness", "/healthz/ready") == (200, b"ready\n", "text/plain; charset=utf-8")
        at.agent.waits_for = ["bpf programs", "controller"]
        status, said, _ = await over_tcp(at, "readiness", "/healthz/ready")
        assert (status, said) == (500, b"not ready, pending: bpf programs, controller\n")
        for method in ("POST", "HEAD", "PUT"):
            assert (await over_tcp(at, "readiness", "/healthz/ready", method))[0] == 405, method


async def test_liveness_names_who_is_stuck(tmp_path: Path) -> None:
    async with served(tmp_path) as at:
        assert (await over_tcp(at, "readiness", "/healthz/live"))[:2] == (200, b"alive\n")
        assert (await over_unix(at, "/healthz/live"))[0] == 404, "a probe asks where readiness is"
        at.agent.stands = ["pump-0", "pump-1"]
        assert (await over_tcp(at, "readiness", "/healthz/live"))[:2] == (500, b"stuck: pump-0, pump-1\n")
        lines = (await over_tcp(at, "metrics", "/metrics", **{"Accept-Encoding": "identity"}))[1].decode().splitlines()
    assert "gossamer_stuck_threads 2" in lines


@pytest.mark.parametrize("path", ["/metrics", "/stats/prometheus"])
async def test_metrics_in_the_format_and_encoding_that_was_asked_for(tmp_path: Path, path: str) -> None:
    async with served(tmp_path) as at:
        at.agent.open(outbound())
        status, plain, content_type = await over_tcp(at, "metrics", path, **{"Accept-Encoding": "identity"})
        assert (status, content_type) == (200, PROMETHEUS)
        names = {family.name for family in text_string_to_metric_families(plain.decode())}
        assert {"istio_tcp_connections_opened", "istio_build", "process_resident_memory_bytes"} <= names
        headers = {"Accept": "application/openmetrics-text", "Accept-Encoding": "gzip"}
        status, packed, content_type = await over_tcp(at, "metrics", path, **headers)
        assert (status, content_type) == (200, OPENMETRICS)
        assert gzip.decompress(packed).endswith(b"# EOF\n")


async def test_who_does_not_read_keeps_nobody_from_scraping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More slow readers than one peer may have, of a scrape that is larger than what sockets hold."""
    large = bytes(1 << 25)

    async def text(self: Scrape, content_type: str, *, packed: bool = False) -> bytes:
        return large

    monkeypatch.setattr(Scrape, "text", text)
    async with served(tmp_path) as at:
        slow = []
        for _ in range(2 * listener.PER_PEER):
            s = socket.create_connection(("127.0.0.1", at.endpoints.bound["metrics"]), source_address=("127.0.0.66", 0))
            s.sendall(b"GET /metrics HTTP/1.1\r\nHost: agent\r\n\r\n")
            slow.append(s)
        assert (await over_tcp(at, "metrics", "/metrics"))[:2] == (200, large)
        assert len(await asyncio.to_thread(answered, slow)) == listener.PER_PEER
        for s in slow:
            s.close()


def answered(sockets: list[socket.socket]) -> list[socket.socket]:
    """Those that are sent something."""
    found = []
    for s in sockets:
        s.settimeout(60)
        with contextlib.suppress(ConnectionError):
            if s.recv(1):
                found.append(s)
    return found


@pytest.mark.parametrize("name", ["admin", "metrics", "readiness"])
async def test_a_connection_has_one_answer(tmp_path: Path, name: str) -> None:
    async with served(tmp_path) as at:
        reader, writer = await asyncio.open_connection("127.0.0.1", at.endpoints.bound[name])
        writer.write(b"GET /nothing HTTP/1.1\r\nHost: agent\r\n\r\n" * 2)
        assert (await asyncio.wait_for(reader.read(), 60)).count(b"HTTP/1.1 404 ") == 1
        writer.close()


async def test_metrics_of_the_node(tmp_path: Path) -> None:
    agent = SmallAgent(
        held=[certificate(PRODUCTPAGE.identity)],
        counters={Reason.AGENT_ABSENT: 3},
        losses=(4, 5),
        described=maps(("flows", "hash", 5, 100), ("settings", "array", 8, 8)),
    )
    async with served(tmp_path, agent) as at:
        lines = (await over_tcp(at, "metrics", "/metrics", **{"Accept-Encoding": "identity"}))[1].decode().splitlines()
    assert "settings" not in "".join(lines), "an array is always full, which says nothing"
    for expected in (
        'istio_build{component="ztunnel",tag="1.2.3"} 1',
        "workload_manager_active_proxy_count 1",
        "workload_manager_pending_proxy_count 0",
        'istio_tcp_sockets_open{reporter="source"} 0',
        'gossamer_kernel_refused_total{reason="AGENT_ABSENT"} 3',
        "gossamer_kernel_events_lost_total 4",
        "gossamer_direct_unfilled_total 5",
        'gossamer_bpf_map_entries{map="flows"} 5',
        'gossamer_bpf_map_max_entries{map="flows"} 100',
        "gossamer_controller_connected 1",
        "istio_xds_connection_terminations_total 2",
        'istio_xds_message_total{url="gossamer.Update"} 4',
        'gossamer_snapshot_resources{kind="workload"} 3',
    ):
        assert expected in lines
    assert any(text.startswith("gossamer_certificate_expiry_timestamp_seconds{identity=") for text in lines)


async def test_bytes_grow_from_scrape_to_scrape_while_a_connection_lives(tmp_path: Path) -> None:
    async with served(tmp_path) as at:
        at.agent.open(outbound())
        seen = []
        for moved in (0, 1000, 5000):
            at.agent.moved[1] = (moved, 2 * moved)
            async with asyncio.timeout(20):
                while True:  # an answer may serve for a moment longer than it is true
                    text = (await over_tcp(at, "metrics", "/metrics", **{"Accept-Encoding": "identity"}))[1].decode()
                    samples = {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples}
                    if samples["istio_tcp_received_bytes_total"] == moved:
                        break
                    await asyncio.sleep(0.01)
            seen.append(samples["istio_tcp_sent_bytes_total"])
        assert seen == [0, 2000, 10000]


async def test_what_the_kernel_side_cannot_tell_leaves_the_rest(tmp_path: Path) -> None:
    agent = SmallAgent(described=FileNotFoundError(2, "No such file or directory"))
    async with served(tmp_path, agent) as at:
        assert (await over_tcp(at, "metrics", "/metrics"))[0] == 200
        status, said = await over_unix(at, "/status")
        assert status == 200
        assert "the kernel side cannot be read: [Errno 2] No such file or directory" in said
        assert (await over_unix(at, "/bpf"))[0] == 200

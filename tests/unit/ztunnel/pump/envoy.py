"""Envoy as the other side: configurations and the process."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mesh.identity import SpiffeId
from mesh.model import SocketAddress
from ztunnel.orders import Credentials

BINARY = Path(sys.prefix) / "bin" / "envoy"
_TYPES = "type.googleapis.com/envoy.extensions"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _address(address: SocketAddress) -> dict:
    return {"socket_address": {"address": address.ip, "port_value": address.port}}


def _tls(credentials: Credentials, peer: SpiffeId, directory: Path) -> dict:
    """Common TLS context: TLS 1.3, h2, certificate, the peer's chain and exact URI SAN. Keys are the test's own."""
    chain, key, roots = directory / "chain.pem", directory / "key.pem", directory / "roots.pem"
    chain.write_text("".join(map(ssl.DER_cert_to_PEM_cert, credentials.chain)))
    key.write_text(ssl.DER_cert_to_PEM_cert(credentials.key).replace("CERTIFICATE", "PRIVATE KEY"))
    roots.write_text("".join(map(ssl.DER_cert_to_PEM_cert, credentials.roots)))
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        "tls_certificates": [{"certificate_chain": {"filename": str(chain)}, "private_key": {"filename": str(key)}}],
        "validation_context": {
            "trusted_ca": {"filename": str(roots)},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": str(peer)}}],
        },
    }


def _cluster(name: str, address: SocketAddress) -> dict:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(address)}}]}],
        },
    }


def client(
    listen: SocketAddress,
    target: SocketAddress,
    authority: str,
    credentials: Credentials,
    server: SpiffeId,
    directory: Path,
) -> dict:
    """tcp_proxy at `listen`, tunnelled by CONNECT `authority` over HTTP/2 and mutual TLS to `target`."""
    cluster = _cluster("tunnel", target)
    cluster["transport_socket"] = {
        "name": "tls",
        "typed_config": {
            "@type": f"{_TYPES}.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": _tls(credentials, server, directory),
        },
    }
    cluster["typed_extension_protocol_options"] = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    proxy = {
        "@type": f"{_TYPES}.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "tunnel",
        "cluster": "tunnel",
        "tunneling_config": {"hostname": authority},
    }
    return _configuration(listen, {"filters": [{"name": "tcp", "typed_config": proxy}]}, cluster)


def server(
    listen: SocketAddress,
    application: SocketAddress,
    credentials: Credentials,
    client: SpiffeId,
    directory: Path,
) -> dict:
    """Terminates CONNECT over HTTP/2 and mutual TLS at `listen` and relays to `application`."""
    route = {
        "match": {"connect_matcher": {}},
        "route": {"cluster": "application", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]},
    }
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "tunnel",
        "codec_type": "HTTP2",
        "http2_protocol_options": {"allow_connect": True, "max_concurrent_streams": 100},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"}},
        ],
    }
    chain = {
        "filters": [{"name": "http", "typed_config": manager}],
        "transport_socket": {
            "name": "tls",
            "typed_config": {
                "@type": f"{_TYPES}.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": True,
                "common_tls_context": _tls(credentials, client, directory),
            },
        },
    }
    return _configuration(listen, chain, _cluster("application", application))


def _configuration(listen: SocketAddress, chain: dict, cluster: dict) -> dict:
    listener = {"name": "in", "address": _address(listen), "filter_chains": [chain]}
    # A deeper half-close than Envoy's default for CONNECT: each direction ends by itself, as TCP's do.
    runtime = {"envoy.reloadable_features.allow_multiplexed_upstream_half_close": True}
    return {
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": runtime}]},
    }


def command(configuration: dict, directory: Path) -> list[str]:
    """Envoy with one worker, under a configuration written to `directory`."""
    file = directory / "envoy.json"
    file.write_text(json.dumps(configuration))
    return [str(BINARY), "-c", str(file), "--concurrency", "1", "--disable-hot-restart"]


def is_ready(log: Path) -> bool:
    """It accepts connections. (One made to find out would become a CONNECT.)"""
    return "all dependencies initialized. starting workers" in log.read_text()


@asynccontextmanager
async def running(configuration: dict, directory: Path) -> AsyncIterator[None]:
    """Envoy, ready to accept."""
    log = directory / "envoy.log"
    arguments = command(configuration, directory)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*arguments, stdout=output, stderr=output)
    try:
        for _ in range(300):
            if is_ready(log):
                break
            assert process.returncode is None, log.read_text()
            await asyncio.sleep(0.1)
        else:
            raise AssertionError(f"Envoy does not start: {log.read_text()}")
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()

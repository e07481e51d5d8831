"""The process' TLS 1.3 suites, in processes of their own: OpenSSL reads its configuration once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ztunnel.engine.ciphers import REQUIRED

TOP = Path(__file__).resolve().parents[4]
OFFERED = """
from ztunnel.engine.ciphers import ensure_openssl_conf, offered
import hashlib, sys
ensure_openssl_conf()
assert hashlib.new("sha3_256", b"").digest() and hashlib.blake2b(b"")
print(offered(), sys.argv[1:])
"""
HANDSHAKE = """
from ztunnel.engine.ciphers import ensure_openssl_conf
ensure_openssl_conf()
import asyncio, subprocess, sys
from tests.unit.ztunnel.engine.nodes import pair

async def main():
    async with pair() as made:
        host, port = made.server.address("tunnel4")
        client = await asyncio.create_subprocess_exec(
            "openssl", "s_client", "-connect", f"{host}:{port}", "-tls1_3", "-alpn", "h2", "-ciphersuites", sys.argv[1],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output, _ = await client.communicate()
        print(output.decode(errors="replace"), made.server.engine.refused)

asyncio.run(main())
"""


def run(program: str, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "OPENSSL_CONF"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=TOP,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_process_starts_itself_again_with_the_required_suites_only() -> None:
    assert run(OFFERED, "--node", "a") == f"{REQUIRED} ['--node', 'a']\n"


def test_a_client_that_has_only_chacha20_is_refused() -> None:
    output = run(HANDSHAKE, "TLS_CHACHA20_POLY1305_SHA256")
    assert "handshake failure" in output
    assert "no shared cipher" in output or "TLS_FAILED" in output


def test_a_client_that_has_aes_is_not() -> None:
    output = run(HANDSHAKE, "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256")
    assert "TLS_AES_128_GCM_SHA256" in output
    assert "handshake failure" not in output

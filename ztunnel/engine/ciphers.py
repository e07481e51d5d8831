"""Which TLS 1.3 suites this process offers: a property of the process, read by OpenSSL from its configuration.

Python 3.11 can set the suites of TLS 1.2 only, so the agent's process starts itself once more with OPENSSL_CONF naming
`ztunnel/openssl.cnf`.
"""

from __future__ import annotations

import os
import ssl
import sys
from importlib.resources import files

REQUIRED = ("TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256")


def offered() -> tuple[str, ...]:
    """The TLS 1.3 suites of a new context of this process, in order of preference."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return tuple(suite["name"] for suite in context.get_ciphers() if suite["protocol"] == "TLSv1.3")


def configuration() -> str:
    """Path of the configuration that makes `offered()` what is required."""
    return str(files("ztunnel") / "openssl.cnf")


def ensure_openssl_conf() -> None:
    """Return if this process offers exactly the required suites; otherwise replace it by itself (same interpreter, same
    arguments) under our configuration. RuntimeError if that did not help. To be called first thing, before threads,
    sockets and files: execve(2) keeps none of them."""
    found = offered()
    if found == REQUIRED:
        return
    if os.environ.get("OPENSSL_CONF") == configuration():
        raise RuntimeError(
            f"OpenSSL offers {', '.join(found)} although OPENSSL_CONF is {configuration()}; "
            f"required are {', '.join(REQUIRED)} only"
        )
    environment = dict(os.environ, OPENSSL_CONF=configuration())
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)

"""Whose AES the tunnels use. That it is AES is shown by every handshake with OpenSSL's own, and byte by byte where the
fuzzer's targets begin (tests/fuzz/parts.pxi)."""

from __future__ import annotations

import ctypes
import ssl
from pathlib import Path

from tests.unit.ztunnel.pump.nodes import pair
from ztunnel.pump._pump import aes


def fast() -> bool:
    """This machine has what makes the other library worth its while."""
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    if not {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd", "vaes", "vpclmulqdq"} <= flags:
        return False
    try:
        ctypes.CDLL("libIPSec_MB.so.1")
    except OSError:
        return False
    return Path("/usr/include/intel-ipsec-mb.h").exists()  # what the pump was compiled with


async def test_openssl_before_3_1_is_helped_where_that_can_be_done() -> None:
    async with pair():
        assert aes() == ("libipsec-mb" if ssl.OPENSSL_VERSION_INFO < (3, 1) and fast() else "OpenSSL")

"""The C interface: compiled code that cimports _session drives two sessions without the GIL."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

TOP = Path(__file__).resolve().parents[4]

CALLER = '''
# cython: language_level=3
from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memset
from mesh.http2._nghttp2 cimport nghttp2_nv
from mesh.http2._session cimport *
from mesh.http2._stream cimport buffer_start

cdef void field(nghttp2_nv *nv, const char *name, size_t n, const char *value, size_t v) noexcept nogil:
    nv.name, nv.namelen, nv.value, nv.valuelen, nv.flags = <uint8_t *>name, n, <uint8_t *>value, v, 0

cdef size_t carry(Session *a, Session *b) noexcept nogil:
    cdef size_t n
    session_fill(a, 1 << 20)
    n = a.out.length
    if n:
        session_receive(b, buffer_start(&a.out), n, 0.0)
    session_taken(a, n)
    session_events_done(a)
    return n

cdef Session *make(bint client) noexcept nogil:
    cdef Config config
    memset(&config, 0, sizeof(config))
    config.client = client
    config.initial_window_size = config.connection_window = 1 << 20
    config.max_frame_size = config.max_header_list_size = config.max_data_frame = 16384
    config.max_concurrent_streams = config.max_control_backlog = config.max_settings_entries = 100
    config.max_outbound_buffer = 1 << 20
    config.settings.tokens = config.settings.burst = 10
    return session_new(&config)

cdef size_t run(size_t total) noexcept nogil:
    """Send `total` zeros over one CONNECT stream; answers how many arrived."""
    cdef nghttp2_nv fields[2]
    cdef uint8_t block[4096]
    cdef size_t sent = 0, arrived = 0, i
    cdef int32_t id
    cdef Session *client = make(True)
    cdef Session *server = make(False)
    memset(block, 0, sizeof(block))
    field(&fields[0], b":method", 7, b"CONNECT", 7)
    field(&fields[1], b":authority", 10, b"10.0.0.7:80", 11)
    id = session_request(client, fields, 2, False)
    while True:
        while sent < total and session_stream(client, id).outbound.length < 65536:
            session_write(client, session_stream(client, id), block, sizeof(block))
            sent += sizeof(block)
        session_fill(client, 1 << 20)
        i = client.out.length
        session_receive(server, buffer_start(&client.out), i, 0.0)
        for k in range(server.event_count):
            if server.events[k].kind == DATA:
                arrived += server.events[k].length
                session_consume(server, session_stream(server, id), server.events[k].length)
        session_events_done(server)
        session_taken(client, i)
        session_events_done(client)
        if carry(server, client) == 0 and i == 0:
            break
    session_free(client)
    session_free(server)
    return arrived

def transfer(size_t total):
    cdef size_t arrived
    with nogil:
        arrived = run(total)
    return arrived
'''


def test_compiled_code_uses_the_session_without_the_gil(tmp_path):
    source = tmp_path / "caller.pyx"
    source.write_text(CALLER)
    subprocess.run([sys.executable, "-m", "cython", "-3", "-I", TOP, source], check=True, cwd=TOP, timeout=120)
    built = tmp_path / f"caller{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = sysconfig.get_path("include")
    command = ["gcc", "-shared", "-fPIC", "-O0", "-w", f"-I{include}", tmp_path / "caller.c", "-o", built, "-lnghttp2"]
    subprocess.run(command, check=True, timeout=120)
    spec = importlib.util.spec_from_file_location("caller", built)
    assert spec
    assert spec.loader
    caller = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(caller)
    assert caller.transfer(8 << 20) == 8 << 20

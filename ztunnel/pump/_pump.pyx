# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The byte engine: native threads, no GIL on any byte. See ztunnel.pump for the map, _pump.pyi for the Python face."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport (
    EAGAIN, EALREADY, ECONNRESET, EINPROGRESS, EINTR, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPIPE, EPROTO, ETIMEDOUT, errno,
)
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memchr, memcmp, memcpy, memset, strchr, strcmp, strcpy, strlen

from mesh.http2 cimport _session as core
from mesh.http2._inbound cimport charge
from mesh.http2._nghttp2 cimport (
    NGHTTP2_NV_FLAG_NONE, nghttp2_check_header_name, nghttp2_check_header_value_rfc9113, nghttp2_nv,
)
from mesh.http2._stream cimport Buffer, buffer_append, buffer_drop, buffer_free, buffer_start
from mesh.http2._stream cimport Stream as Http2Stream

include "system.pxi"
include "openssl.pxi"
include "memory.pxi"
include "timer.pxi"
include "turn.pxi"
include "batch.pxi"
include "address.pxi"
include "allowance.pxi"
include "inquiry.pxi"
include "identity.pxi"
include "netns.pxi"
include "socket.pxi"
include "aes.pxi"
include "tls.pxi"
include "relay.pxi"
include "stream.pxi"
include "tunnel.pxi"
include "server.pxi"
include "spread.pxi"
include "pool.pxi"
include "standing.pxi"
include "passage.pxi"
include "listener.pxi"
include "stock.pxi"
include "pod.pxi"
include "connection.pxi"
include "early.pxi"
include "vigil.pxi"
include "loop.pxi"
include "facts.pxi"
include "orders.pxi"
include "face.pxi"

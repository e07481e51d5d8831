# cython: language_level=3
"""The Python face of _session: see _connection.pyi for every signature."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from mesh.http2 cimport _session as core
from mesh.http2._nghttp2 cimport *
from mesh.http2._stream cimport Stream, buffer_start

from mesh.http2.errors import LocalProtocolError, StreamGone
from mesh.http2.events import (
    DataReceived, GoAwayReceived, HeadersReceived, PingAck, SettingsReceived, StreamClosed, StreamEnded, StreamReset,
    Terminated, WindowOpened,
)

cdef size_t LARGEST_BLOCK = 60_000  # libnghttp2 sends no header block whose upper bound is over 64 KiB


cdef void fill_bucket(core.Bucket *bucket, rate) except *:
    bucket.tokens = bucket.burst = rate.burst
    bucket.per_second = rate.per_second
    bucket.filled_at = 0


cdef class _Fields:
    """Header fields as libnghttp2 takes them; the bytes objects are kept for as long."""
    cdef nghttp2_nv *array
    cdef size_t count
    cdef list kept

    def __cinit__(self, headers):
        cdef size_t size = 0
        cdef nghttp2_nv *at
        self.kept = list(headers)
        self.count = len(self.kept)
        self.array = <nghttp2_nv *>malloc((self.count + 1) * sizeof(nghttp2_nv))
        if self.array == NULL:
            raise MemoryError
        at = self.array
        for name, value in self.kept:
            if type(name) is not bytes or type(value) is not bytes:
                raise TypeError(f"header {name!r}: name and value must be bytes, not {type(name).__name__} and "
                                f"{type(value).__name__}")
            at.name = <uint8_t *>PyBytes_AS_STRING(name)
            at.namelen = PyBytes_GET_SIZE(name)
            at.value = <uint8_t *>PyBytes_AS_STRING(value)
            at.valuelen = PyBytes_GET_SIZE(value)
            at.flags = NGHTTP2_NV_FLAG_NONE
            size += at.namelen + at.valuelen + 32
            if not nghttp2_check_header_name(at.name, at.namelen):
                raise LocalProtocolError(f"header {name!r}: not a lower-case field name (RFC 9113 8.2.1)")
            if not nghttp2_check_header_value_rfc9113(at.value, at.valuelen):
                raise LocalProtocolError(
                    f"header {name!r}: {value!r} has control characters or outer spaces (RFC 9113 8.2.1)")
            at += 1
        if size > LARGEST_BLOCK:
            raise LocalProtocolError(f"headers of {size} bytes (with 32 for each field): at most {LARGEST_BLOCK}")

    def __dealloc__(self):
        free(self.array)


cdef tuple read_fields(const uint8_t *at, uint32_t count):
    cdef uint32_t lengths[2]
    cdef list fields = []
    cdef uint32_t i
    for i in range(count):
        memcpy(lengths, at, sizeof(lengths))
        at += sizeof(lengths)
        fields.append((
            PyBytes_FromStringAndSize(<const char *>at, lengths[0]),
            PyBytes_FromStringAndSize(<const char *>at + lengths[0], lengths[1]),
        ))
        at += lengths[0] + lengths[1]
    return tuple(fields)


cdef object failed(str what, int error):
    if error == NGHTTP2_ERR_NOMEM:
        return MemoryError()
    return LocalProtocolError(f"{what}: {nghttp2_strerror(error).decode()}")


cdef class Connection:
    cdef core.Session *session
    cdef readonly bint client
    cdef readonly object settings
    cdef readonly object limits

    def __cinit__(self, *, bint client, settings, limits):
        cdef core.Config config
        self.client = client
        self.settings = settings
        self.limits = limits
        config.client = client
        config.enable_push = settings.enable_push
        config.initial_window_size = settings.initial_window_size
        config.max_frame_size = settings.max_frame_size
        config.max_header_list_size = settings.max_header_list_size
        config.max_concurrent_streams = settings.max_concurrent_streams
        config.connection_window = settings.connection_window
        config.max_outbound_buffer = limits.max_outbound_buffer
        config.low_water = limits.max_outbound_buffer // 4
        config.max_data_frame = limits.max_data_frame
        config.turn = limits.turn
        config.max_control_backlog = limits.max_control_backlog
        config.max_settings_entries = limits.max_settings_entries
        config.max_continuations = limits.max_continuations
        fill_bucket(&config.resets, limits.resets)
        fill_bucket(&config.pings, limits.pings)
        fill_bucket(&config.settings, limits.settings)
        fill_bucket(&config.empty_frames, limits.empty_frames)
        self.session = core.session_new(&config)
        if self.session == NULL:
            raise MemoryError

    def __dealloc__(self):
        core.session_free(self.session)

    # bytes and events

    def receive(self, data, double now):
        cdef const uint8_t[::1] view = data
        if view.shape[0]:
            core.session_receive(self.session, &view[0], view.shape[0], now)
        return self.events()

    def events(self):
        cdef list events = []
        cdef size_t i = 0
        try:
            while i < self.session.event_count:
                i += self._event(i, events)
        finally:
            core.session_events_done(self.session)
        return events

    cdef size_t _event(self, size_t i, list into) except 0:
        """Append the event at i; answers how many of the session's events it stands for."""
        cdef core.Event *event = &self.session.events[i]
        cdef const uint8_t *kept = buffer_start(&self.session.arena) + event.offset
        cdef object value
        if event.kind == core.DATA:
            return self._data(i, into)
        if event.kind == core.HEADERS:
            value = HeadersReceived(
                event.stream, read_fields(kept, event.count), event.flags & core.END_STREAM != 0,
                event.flags & core.INFORMATIONAL != 0, event.flags & core.TRAILERS != 0)
        elif event.kind == core.ENDED:
            value = StreamEnded(event.stream)
        elif event.kind == core.RESET:
            value = StreamReset(event.stream, event.code, event.flags & core.BY_PEER != 0)
        elif event.kind == core.CLOSED:
            value = StreamClosed(event.stream)
        elif event.kind == core.WRITABLE:
            value = WindowOpened(event.stream)
        elif event.kind == core.PING_ACK:
            value = PingAck(PyBytes_FromStringAndSize(<const char *>kept, event.length))
        elif event.kind == core.SETTINGS:
            value = SettingsReceived()
        elif event.kind == core.GOAWAY:
            value = GoAwayReceived(
                event.stream, event.code, PyBytes_FromStringAndSize(<const char *>kept, event.length))
        else:
            value = Terminated(
                event.code, PyBytes_FromStringAndSize(<const char *>kept, event.length).decode("latin-1"))
        into.append(value)
        return 1

    cdef size_t _data(self, size_t i, list into) except 0:
        """Neighbouring pieces of one stream become one bytes object."""
        cdef core.Event *first = &self.session.events[i]
        cdef core.Event *event = first
        cdef size_t total = 0
        cdef size_t count = 0
        cdef size_t k
        cdef bytes joined
        cdef char *at
        while i + count < self.session.event_count and event.kind == core.DATA and event.stream == first.stream:
            total += event.length
            count += 1
            event += 1
        joined = PyBytes_FromStringAndSize(NULL, total)
        at = PyBytes_AS_STRING(joined)
        for k in range(count):
            memcpy(at, first[k].data, first[k].length)
            at += first[k].length
        into.append(DataReceived(first.stream, joined))
        return count

    def pull(self, limit=None):
        cdef size_t most = <size_t>-1 if limit is None else limit
        cdef bytes data
        if most == 0:
            return b""
        core.session_fill(self.session, most)
        if self.session.out.length < most:
            most = self.session.out.length
        data = PyBytes_FromStringAndSize(<const char *>buffer_start(&self.session.out), most)
        core.session_taken(self.session, most)
        return data

    # streams

    cdef Stream *_open(self, int32_t stream_id) except NULL:
        cdef Stream *stream = core.session_stream(self.session, stream_id)
        if stream == NULL or stream.reset_here or stream.reset_seen or self.session.terminated:
            raise StreamGone(f"stream {stream_id} is not open")
        return stream

    cdef Stream *_writable(self, int32_t stream_id) except NULL:
        cdef Stream *stream = self._open(stream_id)
        if not stream.responded:
            raise LocalProtocolError(f"stream {stream_id}: respond() comes before write() and end()")
        if stream.ending:
            raise LocalProtocolError(f"stream {stream_id}: our half has ended already")
        return stream

    def request(self, headers, bint end_stream=False):
        cdef _Fields fields = _Fields(headers)
        cdef int32_t stream_id
        if not self.client:
            raise LocalProtocolError("a server opens no streams")
        if core.session_available_streams(self.session) == 0:
            raise LocalProtocolError(
                "no stream may be opened: the connection is ending or at the peer's SETTINGS_MAX_CONCURRENT_STREAMS; "
                "look at available_streams before")
        stream_id = core.session_request(self.session, fields.array, fields.count, end_stream)
        if stream_id < 0:
            raise failed("request", stream_id)
        return stream_id

    def respond(self, int32_t stream_id, headers, bint end_stream=False):
        cdef _Fields fields = _Fields(headers)
        cdef Stream *stream = self._open(stream_id)
        cdef int error
        if self.client:
            raise LocalProtocolError("a client does not respond")
        if stream.responded:
            raise LocalProtocolError(f"stream {stream_id}: the final response was given already")
        status = dict(fields.kept).get(b":status", b"")
        if len(status) != 3 or not status.isdigit():
            raise LocalProtocolError(f"stream {stream_id}: :status {status!r} is not three digits")
        if status[:1] == b"1":
            if end_stream:
                raise LocalProtocolError(f"stream {stream_id}: a 1xx response cannot end the stream")
            error = core.session_inform(self.session, stream, fields.array, fields.count)
        else:
            error = core.session_respond(self.session, stream, fields.array, fields.count, end_stream)
        if error:
            raise failed(f"stream {stream_id}: respond", error)

    def write(self, int32_t stream_id, data):
        cdef const uint8_t[::1] view = data
        cdef size_t length = view.shape[0]
        cdef Stream *stream = self._writable(stream_id)
        cdef size_t most = self.session.config.max_outbound_buffer
        if length > most - stream.outbound.length:
            raise LocalProtocolError(
                f"stream {stream_id}: {length} bytes more than the {stream.outbound.length} waiting would exceed "
                f"limits.max_outbound_buffer ({most}); look at room() before and wait for WindowOpened")
        if length and core.session_write(self.session, stream, &view[0], length):
            raise MemoryError

    def end(self, int32_t stream_id):
        core.session_end(self.session, self._writable(stream_id))

    def trailers(self, int32_t stream_id, headers):
        cdef _Fields fields = _Fields(headers)
        cdef Stream *stream = self._writable(stream_id)
        if any(name[:1] == b":" for name, _ in fields.kept):
            raise LocalProtocolError(f"stream {stream_id}: trailers have no pseudo-header fields (RFC 9113 8.1)")
        if core.session_trailers(self.session, stream, fields.array, fields.count):
            raise MemoryError

    def reset(self, int32_t stream_id, uint32_t error_code):
        cdef Stream *stream = core.session_stream(self.session, stream_id)
        cdef int error
        if stream != NULL and not self.session.terminated:
            error = core.session_reset(self.session, stream, error_code)
            if error:
                raise failed(f"stream {stream_id}: reset", error)

    def consume(self, int32_t stream_id, size_t length):
        cdef Stream *stream = core.session_stream(self.session, stream_id)
        cdef int error
        if stream == NULL or self.session.terminated:
            return
        if length > stream.unconsumed:
            raise LocalProtocolError(f"stream {stream_id}: consumed {length} bytes of {stream.unconsumed} received")
        error = core.session_consume(self.session, stream, length)
        if error:
            raise failed(f"stream {stream_id}: consume", error)

    def grow(self, int32_t stream_id, int32_t window):
        cdef Stream *stream = core.session_stream(self.session, stream_id)
        cdef int error
        if stream == NULL or self.session.terminated:
            return
        if window < 0:
            raise LocalProtocolError(f"stream {stream_id}: a window of {window} bytes")
        error = core.session_grow(self.session, stream, window)
        if error:
            raise failed(f"stream {stream_id}: grow", error)

    def buffered(self, int32_t stream_id):
        cdef Stream *stream = core.session_stream(self.session, stream_id)
        return stream.outbound.length if stream != NULL else 0

    def room(self, int32_t stream_id):
        cdef Stream *stream = core.session_stream(self.session, stream_id)
        if stream == NULL or stream.ending or not stream.responded or stream.reset_here or stream.reset_seen:
            return 0
        return self.session.config.max_outbound_buffer - stream.outbound.length

    # the connection

    def ping(self, bytes opaque not None):
        if len(opaque) != 8:
            raise LocalProtocolError(f"ping: 8 bytes, not {len(opaque)} (RFC 9113 6.7)")
        if not self.session.terminated:
            core.session_ping(self.session, <const uint8_t *>PyBytes_AS_STRING(opaque))

    def shutdown_notice(self):
        cdef int error
        if self.client:
            raise LocalProtocolError("a client just stops to open streams; only a server gives notice")
        error = core.session_shutdown_notice(self.session)
        if error:
            raise failed("shutdown_notice", error)

    def goaway(self, uint32_t error_code=0, bytes debug not None=b""):
        cdef int error
        if self.session.terminated:
            return
        error = core.session_goaway(
            self.session, error_code, <const uint8_t *>PyBytes_AS_STRING(debug), PyBytes_GET_SIZE(debug))
        if error:
            raise failed("goaway", error)

    def terminate(self, uint32_t error_code=0):
        core.session_terminate(self.session, error_code)

    @property
    def want_read(self):
        return core.session_wants_read(self.session)

    @property
    def want_write(self):
        return core.session_wants_write(self.session)

    @property
    def closed(self):
        return not core.session_wants_read(self.session) and not core.session_wants_write(self.session)

    @property
    def terminated(self):
        return self.session.terminated

    @property
    def open_streams(self):
        return self.session.streams.count

    @property
    def available_streams(self):
        return core.session_available_streams(self.session)

    @property
    def peer_settings(self):
        cdef nghttp2_session *ng = self.session.ng
        return {
            "header_table_size": nghttp2_session_get_remote_settings(ng, NGHTTP2_SETTINGS_HEADER_TABLE_SIZE),
            "enable_push": nghttp2_session_get_remote_settings(ng, NGHTTP2_SETTINGS_ENABLE_PUSH),
            "max_concurrent_streams": nghttp2_session_get_remote_settings(ng, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS),
            "initial_window_size": nghttp2_session_get_remote_settings(ng, NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE),
            "max_frame_size": nghttp2_session_get_remote_settings(ng, NGHTTP2_SETTINGS_MAX_FRAME_SIZE),
            "max_header_list_size": nghttp2_session_get_remote_settings(ng, NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE),
        }

    def remote_window(self, int32_t stream_id=0):
        if stream_id == 0:
            return nghttp2_session_get_remote_window_size(self.session.ng)
        return max(0, nghttp2_session_get_stream_remote_window_size(self.session.ng, stream_id))

    def local_window(self, int32_t stream_id=0):
        if stream_id == 0:
            return nghttp2_session_get_effective_local_window_size(self.session.ng)
        return max(0, nghttp2_session_get_stream_effective_local_window_size(self.session.ng, stream_id))

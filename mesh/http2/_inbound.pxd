"""What a session does with what arrives: libnghttp2's input callbacks, and the events, rates and violations they need.

A callback that answers other than 0 ends the connection; violated() says before with which code.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.stdlib cimport realloc

from mesh.http2._nghttp2 cimport *
from mesh.http2._session cimport (
    BY_PEER, CLOSED, DATA, END_STREAM, ENDED, GOAWAY, HEADERS, INFORMATIONAL, PING_ACK, RESET, SETTINGS, TRAILERS,
    Bucket, Event, Kind, Session,
)
from mesh.http2._stream cimport (
    Stream, buffer_append, buffer_drop, buffer_start, fields_append, queue_push, table_add, table_find, table_remove,
)


cdef enum:
    MOST_FIELDS = 4 << 20    # bytes of decoded header fields in one go: HPACK makes 60 KB of 20 bytes (RFC 7541 7.3)


cdef inline Event *emit(Session *self, Kind kind, int32_t stream) noexcept nogil:
    cdef size_t capacity
    cdef Event *grown
    cdef Event *event
    if self.event_count == self.event_capacity:
        capacity = max(self.event_capacity * 2, <size_t>16)
        grown = <Event *>realloc(self.events, capacity * sizeof(Event))
        if grown == NULL:
            return NULL
        self.events = grown
        self.event_capacity = capacity
    event = &self.events[self.event_count]
    self.event_count += 1
    event.kind = kind
    event.flags = 0
    event.stream = stream
    event.code = event.count = 0
    event.data = NULL
    event.offset = event.length = 0
    return event


cdef inline int emit_bytes(
    Session *self, Kind kind, int32_t stream, uint32_t code, const void *data, size_t n
) noexcept nogil:
    cdef size_t offset = self.arena.length
    cdef Event *event
    if buffer_append(&self.arena, data, n) != 0:
        return NGHTTP2_ERR_CALLBACK_FAILURE
    event = emit(self, kind, stream)
    if event == NULL:
        return NGHTTP2_ERR_CALLBACK_FAILURE
    event.code = code
    event.offset = offset
    event.length = n
    return 0


cdef inline bint charge(Bucket *bucket, double now) noexcept nogil:
    if now > bucket.filled_at:
        bucket.tokens = min(bucket.burst, bucket.tokens + (now - bucket.filled_at) * bucket.per_second)
        bucket.filled_at = now
    if bucket.tokens < 1.0:
        return False
    bucket.tokens -= 1.0
    return True


cdef inline int violated(Session *self, uint32_t code, const char *detail) noexcept nogil:
    """For callbacks: leave libnghttp2 with a failure; session_receive then ends the connection with this code."""
    self.violation = code
    self.detail = detail
    return NGHTTP2_ERR_CALLBACK_FAILURE


cdef inline int on_begin_frame(nghttp2_session *ng, const nghttp2_frame_hd *head, void *user) noexcept nogil:
    cdef Session *self = <Session *>user
    if nghttp2_session_get_outbound_queue_size(ng) > self.config.max_control_backlog + 2 * self.streams.count:
        return violated(self, NGHTTP2_ENHANCE_YOUR_CALM, b"too many frames that must be answered in one go")
    if head.type == NGHTTP2_PRIORITY and head.stream_id == 0:  # libnghttp2 does not look at what it ignores
        return violated(self, NGHTTP2_PROTOCOL_ERROR, b"PRIORITY on stream 0")
    if head.type != NGHTTP2_CONTINUATION:
        self.continuations = 0
        return 0
    self.continuations += 1
    if self.continuations > self.config.max_continuations:
        return violated(self, NGHTTP2_ENHANCE_YOUR_CALM, b"too many CONTINUATION frames in one header block")
    return 0


cdef inline int on_begin_headers(nghttp2_session *ng, const nghttp2_frame *frame, void *user) noexcept nogil:
    cdef Session *self = <Session *>user
    buffer_drop(&self.block, self.block.length)
    self.block_size = 0
    self.block_count = 0
    self.informational = False
    if frame.headers.cat == NGHTTP2_HCAT_REQUEST and table_find(&self.streams, frame.hd.stream_id) == NULL:
        if table_add(&self.streams, frame.hd.stream_id) == NULL:
            return violated(self, NGHTTP2_INTERNAL_ERROR, b"out of memory")
    return 0


cdef inline int on_header(
    nghttp2_session *ng, const nghttp2_frame *frame, const uint8_t *name, size_t name_length, const uint8_t *value,
    size_t value_length, uint8_t flags, void *user
) noexcept nogil:
    cdef Session *self = <Session *>user
    self.block_size += name_length + value_length + 32
    if self.block_size > self.config.max_header_list_size:
        # libnghttp2 would answer INTERNAL_ERROR; the first RST_STREAM queued for a stream is the one that is sent.
        nghttp2_submit_rst_stream(ng, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_ENHANCE_YOUR_CALM)
        if not self.config.client and not charge(self.resets, self.now):
            return violated(self, NGHTTP2_ENHANCE_YOUR_CALM, b"too many streams with too large headers")
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    if name_length == 7 and name[0] == c":" and name[1] == c"s" and name[2] == c"t":
        self.informational = value_length == 3 and value[0] == c"1"
    if fields_append(&self.block, name, name_length, value, value_length) != 0:
        return violated(self, NGHTTP2_INTERNAL_ERROR, b"out of memory")
    self.block_count += 1
    return 0


cdef inline int on_data_chunk(
    nghttp2_session *ng, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t length, void *user
) noexcept nogil:
    cdef Session *self = <Session *>user
    cdef Stream *stream = table_find(&self.streams, stream_id)
    cdef Event *event
    # Connection window: back on receipt, so that one unread stream never fills the connection.
    cdef int failed = nghttp2_session_consume_connection(ng, length)
    if failed != 0:
        return NGHTTP2_ERR_CALLBACK_FAILURE
    # libnghttp2 delivers the piece that overflows the stream's window once more, after queueing FLOW_CONTROL_ERROR.
    if stream == NULL or stream.unconsumed + length > <size_t>max(
        nghttp2_session_get_stream_effective_local_window_size(ng, stream_id), 0
    ):
        return 0
    event = emit(self, DATA, stream_id)
    if event == NULL:
        return violated(self, NGHTTP2_INTERNAL_ERROR, b"out of memory")
    event.data = data
    event.length = length
    stream.unconsumed += length
    return 0


cdef inline bint block_has_pseudo(Session *self) noexcept nogil:
    """Trailers have no pseudo-header fields (RFC 9113 8.1); requests and responses begin with one."""
    return self.block.length > 8 and buffer_start(&self.block)[8] == c":"


cdef inline int on_message_frame(Session *self, const nghttp2_frame *frame) noexcept nogil:
    cdef Event *event
    cdef bint end = frame.hd.flags & NGHTTP2_FLAG_END_STREAM
    if frame.hd.type == NGHTTP2_DATA:
        if frame.hd.length == frame.data.padlen and not end and not charge(&self.config.empty_frames, self.now):
            return violated(self, NGHTTP2_ENHANCE_YOUR_CALM, b"too many empty DATA frames")
    else:
        if self.arena.length > MOST_FIELDS:
            return violated(self, NGHTTP2_ENHANCE_YOUR_CALM, b"too many header fields in one go")
        if emit_bytes(self, HEADERS, frame.hd.stream_id, 0, buffer_start(&self.block), self.block.length) != 0:
            return violated(self, NGHTTP2_INTERNAL_ERROR, b"out of memory")
        event = &self.events[self.event_count - 1]
        event.count = self.block_count
        if self.informational:
            event.flags |= INFORMATIONAL
        if end:
            event.flags |= END_STREAM
        if frame.headers.cat != NGHTTP2_HCAT_REQUEST and not block_has_pseudo(self):
            event.flags |= TRAILERS
        buffer_drop(&self.block, self.block.length)
    if end and emit(self, ENDED, frame.hd.stream_id) == NULL:
        return violated(self, NGHTTP2_INTERNAL_ERROR, b"out of memory")
    return 0


cdef inline int on_reset_frame(Session *self, const nghttp2_frame *frame) noexcept nogil:
    cdef Stream *stream = table_find(&self.streams, frame.hd.stream_id)
    cdef Event *event
    if not self.config.client and not charge(self.resets, self.now):
        return violated(self, NGHTTP2_ENHANCE_YOUR_CALM, b"too many RST_STREAM frames")
    if stream == NULL or stream.reset_here:
        return 0
    stream.reset_seen = True
    event = emit(self, RESET, frame.hd.stream_id)
    if event == NULL:
        return violated(self, NGHTTP2_INTERNAL_ERROR, b"out of memory")
    event.code = frame.rst_stream.error_code
    event.flags = BY_PEER
    return 0


cdef inline int on_window_update(Session *self, const nghttp2_frame *frame) noexcept nogil:
    cdef Stream *stream
    if frame.hd.stream_id != 0:  # streams wait for the connection's window in the ready queue
        stream = table_find(&self.streams, frame.hd.stream_id)
        if stream != NULL and stream.queue == &self.blocked:
            queue_push(&self.ready, stream)
    return 0


cdef inline int on_frame(nghttp2_session *ng, const nghttp2_frame *frame, void *user) noexcept nogil:
    cdef Session *self = <Session *>user
    cdef uint8_t kind = frame.hd.type
    if kind == NGHTTP2_DATA or kind == NGHTTP2_HEADERS:
        return on_message_frame(self, frame)
    if kind == NGHTTP2_RST_STREAM:
        return on_reset_frame(self, frame)
    if kind == NGHTTP2_WINDOW_UPDATE:
        return on_window_update(self, frame)
    if kind == NGHTTP2_PING:
        if frame.hd.flags & NGHTTP2_FLAG_ACK:
            return emit_bytes(self, PING_ACK, 0, 0, frame.ping.opaque_data, 8)
        if not charge(&self.config.pings, self.now):
            return violated(self, NGHTTP2_ENHANCE_YOUR_CALM, b"too many PING frames")
        return 0
    if kind == NGHTTP2_SETTINGS and not frame.hd.flags & NGHTTP2_FLAG_ACK:
        if not charge(&self.config.settings, self.now):
            return violated(self, NGHTTP2_ENHANCE_YOUR_CALM, b"too many SETTINGS frames")
        # SETTINGS_INITIAL_WINDOW_SIZE may have opened them.
        while self.blocked.first != NULL:
            queue_push(&self.ready, self.blocked.first)
        return 0 if emit(self, SETTINGS, 0) != NULL else NGHTTP2_ERR_CALLBACK_FAILURE
    if kind == NGHTTP2_GOAWAY:
        self.goaway_received = True
        return emit_bytes(
            self, GOAWAY, frame.goaway.last_stream_id, frame.goaway.error_code, frame.goaway.opaque_data,
            frame.goaway.opaque_data_len)
    return 0


cdef inline int on_invalid_frame(nghttp2_session *ng, const nghttp2_frame *frame, int error, void *user) noexcept nogil:
    cdef Session *self = <Session *>user
    self.detail = nghttp2_strerror(error)
    if not self.config.client and not charge(self.resets, self.now):
        return violated(self, NGHTTP2_ENHANCE_YOUR_CALM, b"too many frames that had to be answered with RST_STREAM")
    return 0


cdef inline int on_stream_close(nghttp2_session *ng, int32_t stream_id, uint32_t code, void *user) noexcept nogil:
    cdef Session *self = <Session *>user
    cdef Stream *stream = table_find(&self.streams, stream_id)
    cdef Event *event
    if stream == NULL:
        return 0
    if code != NGHTTP2_NO_ERROR and not stream.reset_seen and not stream.reset_here:
        event = emit(self, RESET, stream_id)
        if event != NULL:
            event.code = code
    if self.turn == stream:
        self.turn = NULL
    self.queued -= stream.outbound.length
    table_remove(&self.streams, stream)
    return 0 if emit(self, CLOSED, stream_id) != NULL else NGHTTP2_ERR_CALLBACK_FAILURE

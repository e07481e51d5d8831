"""What a session does with what leaves: libnghttp2's output callbacks. `turn` names the stream that may frame DATA."""

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from mesh.http2._inbound cimport emit
from mesh.http2._nghttp2 cimport *
from mesh.http2._session cimport WRITABLE, Session
from mesh.http2._stream cimport (
    Stream, buffer_append, buffer_drop, buffer_reserve, buffer_start, queue_push, queue_push_first, table_find,
)


cdef inline int put(Session *self, const uint8_t *data, size_t length) noexcept nogil:
    self.framed += length
    return buffer_append(&self.out, data, length)


cdef inline ssize_t read_length(
    nghttp2_session *ng, uint8_t kind, int32_t stream_id, int32_t connection_window, int32_t stream_window,
    uint32_t max_frame, void *user
) noexcept nogil:
    """libnghttp2 takes the windows into account by itself, but grows its frame buffer to what is answered here."""
    cdef Session *self = <Session *>user
    cdef size_t length = 1
    if self.turn != NULL:
        length = min(self.turn.outbound.length, min(self.config.max_data_frame, <size_t>max_frame))
    return <ssize_t>max(length, <size_t>1)


cdef inline int submit_trailers(Session *self, Stream *stream) noexcept nogil:
    cdef nghttp2_nv *fields = <nghttp2_nv *>calloc(stream.trailer_count, sizeof(nghttp2_nv))
    cdef uint8_t *at = <uint8_t *>buffer_start(&stream.trailers)
    cdef uint32_t lengths[2]
    cdef size_t i
    cdef int failed
    if fields == NULL:
        return NGHTTP2_ERR_NOMEM
    for i in range(stream.trailer_count):
        memcpy(lengths, at, sizeof(lengths))
        fields[i].name = at + sizeof(lengths)
        fields[i].namelen = lengths[0]
        fields[i].value = fields[i].name + lengths[0]
        fields[i].valuelen = lengths[1]
        at = fields[i].value + lengths[1]
    failed = nghttp2_submit_trailer(self.ng, stream.id, fields, stream.trailer_count)
    free(fields)
    return failed


cdef inline ssize_t read_data(
    nghttp2_session *ng, int32_t stream_id, uint8_t *into, size_t length, uint32_t *flags, nghttp2_data_source *source,
    void *user
) noexcept nogil:
    cdef Session *self = <Session *>user
    cdef Stream *stream = self.turn
    if stream == NULL or stream.id != stream_id or (stream.outbound.length == 0 and not stream.ending):
        return NGHTTP2_ERR_DEFERRED
    self.turn = NULL
    length = min(length, stream.outbound.length)
    flags[0] = NGHTTP2_DATA_FLAG_NO_COPY
    if stream.ending and length == stream.outbound.length:
        stream.ended = True
        flags[0] |= NGHTTP2_DATA_FLAG_EOF
        if stream.trailer_count:
            flags[0] |= NGHTTP2_DATA_FLAG_NO_END_STREAM
            if submit_trailers(self, stream) != 0:
                return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    return <ssize_t>length


cdef inline int send_data(
    nghttp2_session *ng, nghttp2_frame *frame, const uint8_t *head, size_t length, nghttp2_data_source *source,
    void *user
) noexcept nogil:
    """From the stream's buffer straight into the output: the payload is copied once."""
    cdef Session *self = <Session *>user
    cdef Stream *stream = table_find(&self.streams, frame.hd.stream_id)
    if stream == NULL or buffer_reserve(&self.out, 9 + length) != 0:
        return NGHTTP2_ERR_CALLBACK_FAILURE
    put(self, head, 9)
    put(self, buffer_start(&stream.outbound), length)
    buffer_drop(&stream.outbound, length)
    self.queued -= length
    if stream.filled and stream.outbound.length <= self.config.low_water:
        stream.filled = False
        if emit(self, WRITABLE, stream.id) == NULL:
            return NGHTTP2_ERR_CALLBACK_FAILURE
    stream.said += length
    if stream.outbound.length == 0 and (stream.ended or not stream.ending):
        stream.said = 0
    elif stream.said < self.config.turn:
        queue_push_first(&self.ready, stream)
    else:
        stream.said = 0
        queue_push(&self.ready, stream)
    return 0


cdef inline void end_with(Session *self, uint32_t code, const nghttp2_frame *goaway) noexcept nogil:
    """Remember why the connection ends; announce() says it when nothing else is to be said."""
    self.terminated = True
    self.violation = code
    if goaway.goaway.opaque_data_len:
        self.detail = NULL  # libnghttp2's own words, kept in block: no header block will come any more
        buffer_drop(&self.block, self.block.length)
        buffer_append(&self.block, goaway.goaway.opaque_data, goaway.goaway.opaque_data_len)
    elif self.detail == NULL:
        self.detail = nghttp2_http2_strerror(code)


cdef inline int on_headers_sent(Session *self, const nghttp2_frame *frame) noexcept nogil:
    cdef Stream *stream = table_find(&self.streams, frame.hd.stream_id)
    if stream == NULL:
        return 0
    if stream.window_wanted > nghttp2_session_get_stream_effective_local_window_size(self.ng, stream.id):
        nghttp2_session_set_local_window_size(self.ng, NGHTTP2_FLAG_NONE, stream.id, stream.window_wanted)
    stream.window_wanted = 0
    if not stream.reset_here and (stream.outbound.length or stream.ending) and not stream.ended:
        queue_push(&self.ready, stream)
    return 0


cdef inline int on_frame_sent(nghttp2_session *ng, const nghttp2_frame *frame, void *user) noexcept nogil:
    cdef Session *self = <Session *>user
    cdef uint8_t kind = frame.hd.type
    if kind == NGHTTP2_HEADERS:
        return on_headers_sent(self, frame)
    if kind == NGHTTP2_GOAWAY:
        if self.own_goaways:
            self.own_goaways -= 1
        elif not self.terminated:
            end_with(self, frame.goaway.error_code, frame)
    if kind == NGHTTP2_RST_STREAM or kind == NGHTTP2_WINDOW_UPDATE or frame.hd.flags & NGHTTP2_FLAG_ACK and (
        kind == NGHTTP2_SETTINGS or kind == NGHTTP2_PING
    ):
        self.control_new += 1
    return 0


cdef inline int on_frame_not_sent(
    nghttp2_session *ng, const nghttp2_frame *frame, int error, void *user
) noexcept nogil:
    """A response that cannot be sent must not leave the peer waiting; a request's stream is closed by libnghttp2."""
    if frame.hd.type == NGHTTP2_HEADERS and frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        if error != NGHTTP2_ERR_STREAM_CLOSED and error != NGHTTP2_ERR_STREAM_CLOSING:
            nghttp2_submit_rst_stream(ng, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_INTERNAL_ERROR)
    return 0

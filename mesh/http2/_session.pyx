# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The HTTP/2 session: libnghttp2 with bounded memory, its own send order and a list of events. See _session.pxd.

Three things are done here and not left to libnghttp2:

* Send order. At any time one stream at most (`turn`) may produce one DATA frame; the others are deferred. So streams
  take turns frame by frame, whatever PRIORITY frames the peer sends and whichever priority scheme it prefers.
* Control frames are framed at once after input, so that violations are known when session_receive returns, and counted:
  a peer that does not read its answers is cut off at max_control_backlog.
* Rates of what costs more to answer than to send: resets (those a violation provokes too), pings, settings, empty
  frames.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport strlen

from mesh.http2._inbound cimport (
    emit_bytes, on_begin_frame, on_begin_headers, on_data_chunk, on_frame, on_header, on_invalid_frame, on_stream_close,
)
from mesh.http2._nghttp2 cimport *
from mesh.http2._outbound cimport on_frame_not_sent, on_frame_sent, put, read_data, read_length, send_data
from mesh.http2._stream cimport (
    Stream, buffer_append, buffer_drop, buffer_free, buffer_start, fields_append, queue_push, queue_remove, table_add,
    table_find, table_free, table_remove,
)


# ---- life


cdef nghttp2_session_callbacks *callbacks_new() noexcept nogil:
    cdef nghttp2_session_callbacks *callbacks = NULL
    if nghttp2_session_callbacks_new(&callbacks) != 0:
        return NULL
    nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame)
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data_chunk)
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame)
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks, on_invalid_frame)
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close)
    nghttp2_session_callbacks_set_data_source_read_length_callback(callbacks, read_length)
    nghttp2_session_callbacks_set_send_data_callback(callbacks, send_data)
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_sent)
    nghttp2_session_callbacks_set_on_frame_not_send_callback(callbacks, on_frame_not_sent)
    return callbacks


cdef nghttp2_option *option_new(const Config *config) noexcept nogil:
    cdef nghttp2_option *option = NULL
    if nghttp2_option_new(&option) != 0:
        return NULL
    nghttp2_option_set_no_auto_window_update(option, 1)
    nghttp2_option_set_no_closed_streams(option, 1)
    nghttp2_option_set_max_reserved_remote_streams(option, 0)
    nghttp2_option_set_max_outbound_ack(option, config.max_control_backlog)
    nghttp2_option_set_max_settings(option, config.max_settings_entries)
    nghttp2_option_set_max_continuations(option, config.max_continuations + 1)  # it would say INTERNAL_ERROR; we do not
    # libnghttp2's own limit reads the machine's clock; ours is told the time.
    nghttp2_option_set_stream_reset_rate_limit(option, <uint64_t>1 << 62, 1)
    return option


cdef Session *session_new(const Config *config) noexcept nogil:
    """A session whose first frames (preface, SETTINGS, connection window) are ready to fill; NULL without memory."""
    cdef Session *self = <Session *>calloc(1, sizeof(Session))
    cdef nghttp2_session_callbacks *callbacks = callbacks_new()
    cdef nghttp2_option *option = option_new(config)
    cdef int failed = NGHTTP2_ERR_NOMEM
    if self != NULL and callbacks != NULL and option != NULL:
        self.config = config[0]
        self.resets = &self.config.resets
        if config.client:
            failed = nghttp2_session_client_new2(&self.ng, callbacks, self, option)
        else:
            failed = nghttp2_session_server_new2(&self.ng, callbacks, self, option)
        if failed == 0:
            failed = submit_settings(self)
    if callbacks != NULL:
        nghttp2_session_callbacks_del(callbacks)
    if option != NULL:
        nghttp2_option_del(option)
    if failed != 0:
        session_free(self)
        return NULL
    return self


cdef int submit_settings(Session *self) noexcept nogil:
    cdef nghttp2_settings_entry entries[6]
    cdef size_t count = 0
    cdef int failed
    cdef Config *config = &self.config
    entries[0].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    entries[0].value = config.initial_window_size
    entries[1].settings_id = NGHTTP2_SETTINGS_MAX_FRAME_SIZE
    entries[1].value = config.max_frame_size
    entries[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
    entries[2].value = config.max_header_list_size
    entries[3].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
    entries[3].value = config.max_concurrent_streams
    count = 4
    if config.client:  # a server must not send it with another value than 0, which is the meaning of silence
        entries[count].settings_id = NGHTTP2_SETTINGS_ENABLE_PUSH
        entries[count].value = 1 if config.enable_push else 0
        count += 1
    else:  # streams take turns here: PRIORITY means nothing, and is not kept (RFC 9218 2.1)
        entries[count].settings_id = NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES
        entries[count].value = 1
        count += 1
    failed = nghttp2_submit_settings(self.ng, NGHTTP2_FLAG_NONE, entries, count)
    if failed == 0:
        failed = nghttp2_session_set_local_window_size(self.ng, NGHTTP2_FLAG_NONE, 0, config.connection_window)
    return failed


cdef void session_free(Session *self) noexcept nogil:
    if self == NULL:
        return
    if self.ng != NULL:
        nghttp2_session_del(self.ng)
    table_free(&self.streams)
    buffer_free(&self.out)
    buffer_free(&self.block)
    buffer_free(&self.arena)
    free(self.events)
    free(self)


# ---- bytes in


cdef void session_receive(Session *self, const uint8_t *data, size_t length, double now) noexcept nogil:
    cdef ssize_t taken
    if self.terminated or self.dead:
        return
    self.now = now
    self.violation = 0
    self.detail = NULL
    taken = nghttp2_session_mem_recv(self.ng, data, length)
    if taken < 0:
        if self.violation == 0:
            self.detail = nghttp2_strerror(<int>taken)
            if taken == NGHTTP2_ERR_FLOODED:
                self.violation = NGHTTP2_ENHANCE_YOUR_CALM
            elif taken == NGHTTP2_ERR_BAD_CLIENT_MAGIC:
                self.violation = NGHTTP2_PROTOCOL_ERROR
            else:
                self.violation = NGHTTP2_INTERNAL_ERROR
        nghttp2_session_terminate_session(self.ng, self.violation)
    frame_control(self)
    if self.control_old + self.control_new > self.config.max_control_backlog and not self.terminated and not self.dead:
        self.detail = b"the peer does not read the answers to its frames"
        nghttp2_session_terminate_session(self.ng, NGHTTP2_ENHANCE_YOUR_CALM)
        frame_control(self)
    announce(self)


cdef void session_events_done(Session *self) noexcept nogil:
    self.event_count = 0
    buffer_drop(&self.arena, self.arena.length)
    if self.event_capacity > 1024:
        free(self.events)
        self.events = NULL
        self.event_capacity = 0


cdef int frame_control(Session *self) noexcept nogil:
    """Everything but DATA (and DATA of the stream whose turn it is) goes into the output. -1 when dead."""
    cdef const uint8_t *data = NULL
    cdef ssize_t length
    while not self.dead:
        length = nghttp2_session_mem_send(self.ng, &data)
        if length == 0:
            return 0
        if length < 0 or put(self, data, <size_t>length) != 0:
            self.dead = True
            if not self.terminated:
                self.terminated = True
                self.violation = NGHTTP2_INTERNAL_ERROR
                self.detail = b"out of memory"
    return -1


cdef void announce(Session *self) noexcept nogil:
    """TERMINATED, once, after every other event."""
    if not self.terminated or self.violation == 0:
        return
    if self.detail == NULL:
        emit_bytes(self, TERMINATED, 0, self.violation, buffer_start(&self.block), self.block.length)
    else:
        emit_bytes(self, TERMINATED, 0, self.violation, self.detail, strlen(self.detail))
    self.violation = 0


# ---- bytes out


cdef void session_fill(Session *self, size_t limit) noexcept nogil:
    """Frame until the output holds `limit` bytes (the last frame may go over it) or nothing more may be sent."""
    cdef Stream *stream
    frame_control(self)
    while self.out.length < limit and not self.dead and not self.terminated:
        stream = self.ready.first
        if stream == NULL or nghttp2_session_get_remote_window_size(self.ng) <= 0:
            break
        queue_remove(stream)
        if nghttp2_session_get_stream_remote_window_size(self.ng, stream.id) == 0:
            queue_push(&self.blocked, stream)
        elif nghttp2_session_resume_data(self.ng, stream.id) == 0:
            self.turn = stream
            frame_control(self)
            self.turn = NULL
        # Otherwise its HEADERS have not left: on_headers_sent queues it again.
    announce(self)


cdef void session_taken(Session *self, size_t length) noexcept nogil:
    """The first bytes of the output went to the peer."""
    buffer_drop(&self.out, length)
    if self.framed - self.out.length >= self.control_mark:
        self.control_old = self.control_new
        self.control_new = 0
        self.control_mark = self.framed
    if self.out.length == 0:
        self.control_old = self.control_new = 0


cdef bint session_wants_read(Session *self) noexcept nogil:
    return not self.terminated and not self.dead and nghttp2_session_want_read(self.ng) != 0


cdef bint session_wants_write(Session *self) noexcept nogil:
    if self.out.length:
        return True
    if self.dead:
        return False
    if nghttp2_session_want_write(self.ng):
        return True
    return self.ready.first != NULL and not self.terminated and nghttp2_session_get_remote_window_size(self.ng) > 0


# ---- commands


cdef Stream *session_stream(Session *self, int32_t id) noexcept nogil:
    return table_find(&self.streams, id)


cdef size_t session_available_streams(Session *self) noexcept nogil:
    """Requests that may be opened now: the peer's SETTINGS_MAX_CONCURRENT_STREAMS (100 until known) less the open."""
    cdef uint32_t most
    if self.terminated or self.dead or not self.config.client or self.goaway_received:
        return 0
    if not nghttp2_session_check_request_allowed(self.ng):
        return 0
    most = nghttp2_session_get_remote_settings(self.ng, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS)
    return most - self.streams.count if most > self.streams.count else 0


cdef int32_t session_request(Session *self, const nghttp2_nv *fields, size_t count, bint end) noexcept nogil:
    """The new stream's id, or a negative libnghttp2 error. Ask session_available_streams before."""
    cdef nghttp2_data_provider provider
    cdef int32_t id = <int32_t>nghttp2_session_get_next_stream_id(self.ng)
    cdef int32_t submitted
    cdef Stream *stream = table_add(&self.streams, id)
    if stream == NULL:
        return NGHTTP2_ERR_NOMEM
    stream.responded = True
    stream.ending = stream.ended = end
    provider.source.ptr = NULL
    provider.read_callback = read_data
    submitted = nghttp2_submit_request(self.ng, NULL, fields, count, NULL if end else &provider, NULL)
    if submitted < 0:
        table_remove(&self.streams, stream)
    return submitted


cdef int session_inform(Session *self, Stream *stream, const nghttp2_nv *fields, size_t count) noexcept nogil:
    """A 1xx response."""
    return nghttp2_submit_headers(self.ng, NGHTTP2_FLAG_NONE, stream.id, NULL, fields, count, NULL)


cdef int session_respond(
    Session *self, Stream *stream, const nghttp2_nv *fields, size_t count, bint end
) noexcept nogil:
    cdef nghttp2_data_provider provider
    cdef int failed
    provider.source.ptr = NULL
    provider.read_callback = read_data
    failed = nghttp2_submit_response(self.ng, stream.id, fields, count, NULL if end else &provider)
    if failed == 0:
        stream.responded = True
        stream.ending = stream.ended = end
    return failed


cdef int session_write(Session *self, Stream *stream, const uint8_t *data, size_t length) noexcept nogil:
    """The caller has checked that it fits under config.max_outbound_buffer and that the stream is not ending."""
    if length == 0:
        return 0
    if buffer_append(&stream.outbound, data, length) != 0:
        return NGHTTP2_ERR_NOMEM
    self.queued += length
    if stream.outbound.length > self.config.low_water:
        stream.filled = True
    if stream.queue == NULL:
        queue_push(&self.ready, stream)
    return 0


cdef int session_trailers(Session *self, Stream *stream, const nghttp2_nv *fields, size_t count) noexcept nogil:
    cdef size_t i
    for i in range(count):
        if fields_append(
            &stream.trailers, fields[i].name, fields[i].namelen, fields[i].value, fields[i].valuelen
        ) != 0:
            return NGHTTP2_ERR_NOMEM
    stream.trailer_count = count
    session_end(self, stream)
    return 0


cdef void session_end(Session *self, Stream *stream) noexcept nogil:
    if stream.ending:
        return
    stream.ending = True
    if stream.queue == NULL:
        queue_push(&self.ready, stream)


cdef int session_reset(Session *self, Stream *stream, uint32_t code) noexcept nogil:
    """What was buffered is dropped; CLOSED follows when the frame was filled."""
    if stream.reset_here:
        return 0
    stream.reset_here = True
    queue_remove(stream)
    self.queued -= stream.outbound.length
    buffer_drop(&stream.outbound, stream.outbound.length)
    return nghttp2_submit_rst_stream(self.ng, NGHTTP2_FLAG_NONE, stream.id, code)


cdef int session_consume(Session *self, Stream *stream, size_t length) noexcept nogil:
    """At most stream.unconsumed bytes."""
    stream.unconsumed -= length
    return nghttp2_session_consume_stream(self.ng, stream.id, length)


cdef int session_grow(Session *self, Stream *stream, int32_t window) noexcept nogil:
    if nghttp2_session_get_stream_remote_window_size(self.ng, stream.id) < 0:  # libnghttp2 does not know it yet
        stream.window_wanted = window
        return 0
    if window <= nghttp2_session_get_stream_effective_local_window_size(self.ng, stream.id):
        return 0  # what the peer was promised cannot be taken back
    return nghttp2_session_set_local_window_size(self.ng, NGHTTP2_FLAG_NONE, stream.id, window)


cdef int session_ping(Session *self, const uint8_t *opaque) noexcept nogil:
    return nghttp2_submit_ping(self.ng, NGHTTP2_FLAG_NONE, opaque)


cdef int session_shutdown_notice(Session *self) noexcept nogil:
    """Server: GOAWAY with the highest stream id (RFC 9113 6.8): no request is lost, the client stops asking."""
    cdef size_t before = nghttp2_session_get_outbound_queue_size(self.ng)
    cdef int failed = nghttp2_submit_shutdown_notice(self.ng)
    # libnghttp2 queues nothing when a GOAWAY was sent or received before.
    self.own_goaways += nghttp2_session_get_outbound_queue_size(self.ng) - before
    return failed


cdef int session_goaway(Session *self, uint32_t code, const uint8_t *debug, size_t length) noexcept nogil:
    """GOAWAY naming the last stream that was processed; open streams go on."""
    cdef size_t before = nghttp2_session_get_outbound_queue_size(self.ng)
    cdef int failed = nghttp2_submit_goaway(
        self.ng, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(self.ng), code, debug, length)
    self.own_goaways += nghttp2_session_get_outbound_queue_size(self.ng) - before
    return failed


cdef void session_terminate(Session *self, uint32_t code) noexcept nogil:
    """GOAWAY and no more: nothing is received or sent after it."""
    if self.terminated or self.dead:
        return
    nghttp2_session_terminate_session(self.ng, code)
    self.terminated = True
    self.violation = 0

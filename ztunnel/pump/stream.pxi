# One CONNECT stream of a tunnel, as an end of a relay.
#
# Bytes received wait here, never more than the stream's window; bytes to send wait in the HTTP/2 session, at most
# `stream_buffer`. The window is returned as the relay takes bytes, which it does only when the local socket has room,
# and grows while that keeps up.

cdef enum:  # RFC 9113 7
    NO_ERROR = 0x0
    INTERNAL_ERROR = 0x2
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    CONNECT_ERROR = 0xA
    LARGEST_BLOCK = 60_000   # libnghttp2 sends no header block whose upper bound is over 64 KiB
    MOST_FIELDS = 64


cdef struct Stream:
    # Owned by the tunnel while HTTP/2 has it (`live`, in the tunnel's table) and by the connection until that lets go
    # (`held`); freed after both. The tunnel may be gone before the connection has read what arrived.
    Tunnel *tunnel
    int32_t id
    Stream *chained          # in the table
    bint live
    bint held
    bint closed              # HTTP/2 is done with it; bytes received may still wait here
    bint ended               # the peer's END_STREAM came
    bint finished            # ours is wanted
    bint unprocessed         # the peer has not looked at the request: safe to try elsewhere
    int answer               # client: final status of the CONNECT; 0: none yet
    Lost lost
    Buffer inbound
    int32_t window
    int64_t since_growth
    bint awaited             # in the tunnel's list of those whose END_STREAM shall leave
    Stream *next_awaited
    Stream *next_refused
    Connection *connection   # whose end it is; told of changes
    Corpse corpse


cdef struct Streams:
    # By id. An array of chains, as long as a power of two.
    Stream **chains
    uint32_t size
    uint32_t count


cdef Stream *streams_find(const Streams *self, int32_t id) noexcept nogil:
    cdef Stream *found
    if self.count == 0:
        return NULL
    found = self.chains[(<uint32_t>id >> 1) & (self.size - 1)]
    while found != NULL and found.id != id:
        found = found.chained
    return found


cdef void streams_grow(Streams *self) noexcept nogil:
    cdef uint32_t size = max(self.size * 2, <uint32_t>16)
    cdef uint32_t i, to
    cdef Stream *stream
    cdef Stream **chains = <Stream **>make(size * sizeof(Stream *))
    for i in range(self.size):
        while self.chains[i] != NULL:
            stream = self.chains[i]
            self.chains[i] = stream.chained
            to = (<uint32_t>stream.id >> 1) & (size - 1)
            stream.chained = chains[to]
            chains[to] = stream
    free(self.chains)
    self.chains, self.size = chains, size


cdef Stream *stream_new(Tunnel *tunnel, int32_t id) noexcept nogil:
    cdef Stream *self = <Stream *>make(sizeof(Stream))
    cdef Streams *table = &tunnel.streams
    cdef uint32_t at
    if table.count >= table.size:
        streams_grow(table)
    self.tunnel, self.id = tunnel, id
    self.window = tunnel.loop.shared.limits.stream_window
    self.live = self.held = True
    at = (<uint32_t>id >> 1) & (table.size - 1)
    self.chained = table.chains[at]
    table.chains[at] = self
    table.count += 1
    tunnel.held += 1
    return self


cdef void stream_dispose(void *of) noexcept nogil:
    cdef Stream *self = <Stream *>of
    buffer_free(&self.inbound)
    lost_free(&self.lost)
    free(self)


cdef void stream_unlink(Stream *self) noexcept nogil:
    """HTTP/2 has it no longer."""
    cdef Streams *table = &self.tunnel.streams
    cdef Stream **at
    if not self.live:
        return
    at = &table.chains[(<uint32_t>self.id >> 1) & (table.size - 1)]
    while at[0] != self:
        at = &at[0].chained
    at[0] = self.chained
    table.count -= 1
    self.live = False
    self.closed = True
    if not self.held:
        bury(self.tunnel.loop, &self.corpse, stream_dispose, self)


cdef void stream_await(Stream *self, bint begin) noexcept nogil:
    """Enter or leave the tunnel's list of those whose END_STREAM shall leave."""
    cdef Stream **at = &self.tunnel.awaited
    if begin == self.awaited:
        return
    self.awaited = begin
    if begin:
        self.next_awaited = at[0]
        at[0] = self
        return
    while at[0] != self:
        at = &at[0].next_awaited
    at[0] = self.next_awaited


cdef inline Http2Stream *stream_http(Stream *self) noexcept nogil:
    return core.session_stream(self.tunnel.session, self.id) if self.live else NULL


cdef void stream_changed(Stream *self) noexcept nogil:
    if self.connection != NULL:
        connection_wake(self.connection)


cdef void stream_fail(Stream *self, int reason, const char *detail) noexcept nogil:
    if reason == INTERNAL and not self.closed:
        stream_reset(self, INTERNAL_ERROR)
    self.closed = True
    lost_set(&self.lost, reason, detail)
    stream_changed(self)


cdef size_t stream_room(Stream *self) noexcept nogil:
    """Bytes it may be given now. When there are none, it changes once there are (WRITABLE)."""
    cdef Http2Stream *http
    cdef size_t limit = self.tunnel.loop.shared.limits.stream_buffer
    http = stream_http(self)
    if http == NULL:
        return CHUNK  # into the void: its `lost` tells, or will
    if pod_swollen(self.tunnel.pod):
        limit = self.tunnel.session.config.low_water + 1  # more than that, and it changes
    return limit - http.outbound.length if http.outbound.length < limit else 0


cdef void stream_write(Stream *self, const uint8_t *data, size_t length) noexcept nogil:
    """Only while there is room."""
    cdef Http2Stream *http = stream_http(self)
    if http == NULL or http.ending:
        return
    if core.session_write(self.tunnel.session, http, data, length) != 0:
        stream_fail(self, INTERNAL, b"out of memory")
        return
    tunnel_flush_soon(self.tunnel)


cdef void stream_finish(Stream *self) noexcept nogil:
    cdef Http2Stream *http = stream_http(self)
    if self.finished or self.lost.reason:
        return
    self.finished = True
    if http != NULL:
        stream_await(self, True)
        core.session_end(self.tunnel.session, http)
        tunnel_flush_soon(self.tunnel)


cdef bint stream_flushed(Stream *self) noexcept nogil:
    """`stream_finish` was called and everything has left the session."""
    cdef Http2Stream *http
    if not self.finished:
        return False
    http = stream_http(self)
    return http == NULL or http.ended


cdef void stream_count_growth(Stream *self, int64_t change) noexcept nogil:
    self.tunnel.growth += change
    pod_grow(self.tunnel.pod, change)


cdef void stream_forget(Stream *self, size_t count) noexcept nogil:
    """The first of the bytes that wait."""
    buffer_drop(&self.inbound, count)
    self.tunnel.inbound -= count
    if self.tunnel.over:
        tunnel_count(self.tunnel, self.tunnel.inbound)
    else:
        tunnel_account(self.tunnel)


cdef void stream_grow(Stream *self) noexcept nogil:
    """Double the window, if the budgets of tunnel, pod and node have that much."""
    cdef Limits *limits = &self.tunnel.loop.shared.limits
    cdef int64_t spare = min(
        limits.window_budget - self.tunnel.growth,
        min(limits.window_budget_per_pod - pod_growth(self.tunnel.pod),
            limits.window_budget_of_all - atomic_get(&self.tunnel.loop.shared.growth, RELAXED)))
    cdef int64_t window = min(<int64_t>self.window * 2, min(self.window + spare, <int64_t>limits.stream_window_max))
    cdef Http2Stream *http = stream_http(self)
    if window <= self.window or http == NULL:
        return
    stream_count_growth(self, window - self.window)
    self.window = <int32_t>window
    core.session_grow(self.tunnel.session, http, self.window)


cdef void stream_taken(Stream *self, size_t count) noexcept nogil:
    """The relay has delivered so many of the bytes that wait."""
    stream_forget(self, count)
    stream_return_window(self, count)


cdef void stream_return_window(Stream *self, size_t count) noexcept nogil:
    cdef Http2Stream *http
    if count == 0 or self.closed or self.ended or self.lost.reason:
        return
    http = stream_http(self)
    if http == NULL:
        return
    self.since_growth += count
    if self.since_growth >= self.window and self.inbound.length == 0:
        self.since_growth = 0
        stream_grow(self)
    core.session_consume(self.tunnel.session, http, min(count, http.unconsumed))
    tunnel_flush_soon(self.tunnel)


cdef void stream_received(Stream *self, iovec *pieces, size_t count, size_t length) noexcept nogil:
    """Straight on to the socket at the other end of the relay, if that is ready; the rest waits."""
    cdef size_t taken = 0
    cdef size_t i, skipped
    if self.connection == NULL:
        return  # refused, or let go: nobody will read it
    if self.inbound.length == 0:
        taken = connection_pass_on(self.connection, self, pieces, count, length)
        stream_return_window(self, taken)
        if taken == length:
            return
    skipped = taken
    for i in range(count):
        if skipped >= pieces[i].iov_len:
            skipped -= pieces[i].iov_len
            continue
        if buffer_append(
            &self.inbound, <uint8_t *>pieces[i].iov_base + skipped, pieces[i].iov_len - skipped
        ) != 0:
            stream_fail(self, INTERNAL, b"out of memory")
            return
        self.tunnel.inbound += pieces[i].iov_len - skipped
        skipped = 0
    stream_changed(self)


cdef void stream_let_go(Stream *self) noexcept nogil:
    """The connection is through with it. A live one may still have its END_STREAM to send."""
    self.connection = NULL
    stream_await(self, False)
    stream_forget(self, self.inbound.length)
    if not self.held:
        return
    self.held = False
    self.tunnel.held -= 1
    stream_count_growth(self, self.tunnel.loop.shared.limits.stream_window - <int64_t>self.window)
    tunnel_freed_soon(self.tunnel)
    if not self.live:
        bury(self.tunnel.loop, &self.corpse, stream_dispose, self)
    if self.tunnel.over:
        bury_tunnel_when_free(self.tunnel)


cdef void stream_reset(Stream *self, uint32_t code) noexcept nogil:
    cdef Http2Stream *http = stream_http(self)
    if http != NULL:
        core.session_reset(self.tunnel.session, http, code)
        tunnel_flush_soon(self.tunnel)
    self.closed = True
    stream_unlink(self)


cdef void stream_abort(Stream *self) noexcept nogil:
    """RFC 9113 8.5: an error of the TCP connection behind a CONNECT is CONNECT_ERROR."""
    if not self.closed:
        stream_reset(self, CANCEL if self.tunnel.group != NULL else CONNECT_ERROR)
    stream_let_go(self)


cdef struct Fields:
    # Header fields for libnghttp2. They point into what they were read from.
    nghttp2_nv array[MOST_FIELDS]
    size_t count
    size_t size
    bint bad                 # too many, too large, or not what RFC 9113 8.2.1 allows


cdef void fields_add(
    Fields *self, const char *name, size_t name_length, const char *value, size_t value_length
) noexcept nogil:
    cdef nghttp2_nv *field
    self.size += name_length + value_length + 32
    if self.count == MOST_FIELDS or self.size > LARGEST_BLOCK or not nghttp2_check_header_name(
        <const uint8_t *>name, name_length
    ) or not nghttp2_check_header_value_rfc9113(<const uint8_t *>value, value_length):
        self.bad = True
        return
    field = &self.array[self.count]
    field.name, field.namelen = <uint8_t *>name, name_length
    field.value, field.valuelen = <uint8_t *>value, value_length
    field.flags = NGHTTP2_NV_FLAG_NONE
    self.count += 1


cdef void fields_read(Fields *self, Cursor *record) noexcept nogil:
    """A count and so many names and values."""
    cdef uint64_t left = cursor_number(record)
    cdef size_t name_length, value_length
    cdef const char *name
    cdef const char *value
    while left:
        name = cursor_bytes(record, &name_length)
        value = cursor_bytes(record, &value_length)
        fields_add(self, name, name_length, value, value_length)
        left -= 1


cdef void stream_respond(Stream *self, int status, Cursor *headers, bint end) noexcept nogil:
    """`headers` may be NULL."""
    cdef Http2Stream *http = stream_http(self)
    cdef Fields fields
    cdef char text[8]
    if http == NULL:
        return
    fields.count, fields.size, fields.bad = 0, 0, False
    snprintf(text, sizeof(text), b"%d", status)
    fields_add(&fields, b":status", 7, text, strlen(text))
    if headers != NULL:
        fields_read(&fields, headers)
    if fields.bad or core.session_respond(self.tunnel.session, http, fields.array, fields.count, end) != 0:
        stream_fail(self, INTERNAL, b"the response cannot be sent")
    tunnel_flush_soon(self.tunnel)


cdef void stream_refuse(Stream *self, int status) noexcept nogil:
    """A response without body; once it is framed, no more is wanted of the request (RFC 9113 8.1)."""
    self.connection = NULL
    stream_forget(self, self.inbound.length)
    if self.closed:
        stream_let_go(self)
        return
    stream_respond(self, status, NULL, True)
    self.next_refused = self.tunnel.refused
    self.tunnel.refused = self

# What an application says before its CONNECT is answered goes with it, in the same record and write: a round trip less
# (RFC 9113 8.5: frames of a stream keep it apart from everything else, so whoever refuses the stream drops it).
#
# It is kept until the answer, for the CONNECT may have to be sent again, and counted with what tunnels hold. On the other
# side the answer to such a request waits a moment for what is replied, and goes with that.

cdef enum:
    EARLY = 4 << 10          # bytes at most


cdef void early_hold(Connection *self, int64_t change) noexcept nogil:
    pod_hold(self.pod, change)


cdef void early_read(Connection *self) noexcept nogil:
    """Once its tunnel is ordered, not earlier. A clean end, or an error, waits for whoever relays."""
    cdef Socket *down = self.down.socket
    cdef size_t limit = min(<size_t>EARLY, self.loop.shared.limits.stream_buffer) - self.early.length
    cdef ssize_t count = NOTHING
    if down == NULL:
        return
    if limit and not pod_swollen(self.pod):
        count = socket_read(down, self.loop.chunk, limit)
    if count > 0:
        if buffer_append(&self.early, self.loop.chunk, count) != 0:
            die(b"out of memory")
        early_hold(self, count)
        if self.up.stream != NULL:
            stream_write(self.up.stream, self.loop.chunk, count)
        socket_drained(down, count, limit)
    if not socket_watch(down) or end_lost(&self.down):
        connection_wake(self)


cdef void early_write(Connection *self) noexcept nogil:
    """Behind the CONNECT that was just sent."""
    if self.early.length:
        stream_write(self.up.stream, buffer_start(&self.early), self.early.length)


cdef size_t early_free(Connection *self) noexcept nogil:
    """Idempotent. How many bytes it was."""
    cdef size_t length = self.early.length
    early_hold(self, -<int64_t>length)
    buffer_free(&self.early)
    return length


cdef bint answered(Connection *self) noexcept nogil:
    """Whether its CONNECT is, of a connection that relays. Now, if there is a reply already, or if nobody waits for one:
    who has said nothing, or as much as it may, waits for the answer."""
    cdef uint64_t said
    if not self.owes:
        return True
    said = self.meter.sent + self.down.stream.inbound.length
    if said == 0 or said >= EARLY or self.up.socket == NULL or self.up.socket.readable:
        answer(self)
        return True
    if self.timer.list == NULL:
        timer_start(self.loop, &self.timer, ANSWER, answer, self)
    return False


cdef void answer(void *of) noexcept nogil:
    cdef Connection *self = <Connection *>of
    cdef Cursor headers
    timer_stop(&self.timer)
    self.owes = False
    headers.at = buffer_start(&self.headers)
    headers.end = headers.at + self.headers.length
    stream_respond(self.down.stream, 200, &headers if self.headers.length else NULL, False)
    buffer_free(&self.headers)

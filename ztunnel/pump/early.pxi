# What an application says before its CONNECT is answered goes with it, in the same record and write: a round trip less
# (RFC 9113 8.5: frames of a stream keep it apart from everything else, so whoever refuses the stream drops it).
#
# It is kept until the answer, for the CONNECT may have to be sent again, and counted with what tunnels hold.

cdef enum:
    EARLY = 4 << 10          # bytes at most


cdef void early_hold(Connection *self, int64_t change) noexcept nogil:
    self.pod.buffered += change
    atomic_add(&self.loop.shared.buffered, change, RELAXED)


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

# Two ends and the bytes between them: back-pressure, half-close, and errors that stay errors.
#
# It reads from one end only while the other has room, so what it holds is nothing. A step moves a bounded amount, so
# that no connection keeps the others waiting.

cdef struct End:
    # One of the two is set, or none. Owned by the connection until it is aborted, closed or refused.
    Socket *socket
    Stream *stream


cdef struct Meter:
    # Read by Python while the thread counts; made here, freed by Python with the Ended fact. Bytes.
    uint64_t sent
    uint64_t received


cdef struct Way:
    # One direction. What is counted is what the sink took: always an exact prefix of what the source sent.
    bint ended               # the source's clean end was read


cdef inline bint end_is_none(const End *self) noexcept nogil:
    return self.socket == NULL and self.stream == NULL


cdef inline int end_lost(const End *self) noexcept nogil:
    """Its reason, 0: it is well. What arrived before can still be read."""
    if self.socket != NULL:
        return socket_reason(self.socket) if self.socket.error else 0
    return self.stream.lost.reason if self.stream != NULL else 0


cdef void end_explain(const End *self, char *into, size_t size) noexcept nogil:
    if self.socket != NULL:
        snprintf(into, size, b"%s: %s", self.socket.side, error_text(self.socket.error))
    else:
        snprintf(into, size, b"%s", self.stream.lost.detail)


cdef inline bint end_flushed(const End *self) noexcept nogil:
    return self.socket.finish_sent if self.socket != NULL else stream_flushed(self.stream)


cdef inline size_t end_room(const End *self) noexcept nogil:
    """Bytes that are welcome now."""
    if self.socket != NULL:
        return CHUNK if self.socket.out.length == 0 and self.socket.writable else 0
    return stream_room(self.stream)


cdef void end_finish(End *self) noexcept nogil:
    if self.socket != NULL:
        socket_finish(self.socket)
    else:
        stream_finish(self.stream)


cdef void end_abort(End *self) noexcept nogil:
    if self.socket != NULL:
        socket_abort(self.socket)
    elif self.stream != NULL:
        stream_abort(self.stream)
    self.socket, self.stream = NULL, NULL


cdef void end_close(End *self) noexcept nogil:
    if self.socket != NULL:
        socket_close(self.socket)
    elif self.stream != NULL:
        stream_let_go(self.stream)
    self.socket, self.stream = NULL, NULL


cdef int way_move_socket(Way *self, Socket *source, End *sink, size_t room, uint64_t *moved) noexcept nogil:
    """1: there may be more right away; 0: not now; -1: the source is lost."""
    cdef size_t limit = min(room, <size_t>CHUNK)
    cdef ssize_t count = socket_read(source, source.loop.chunk, limit)
    if count == NOTHING:
        return 0
    if count == FAILED:
        return -1
    if count == 0:
        self.ended = True
        end_finish(sink)
        return 0
    if sink.socket != NULL:
        socket_write(sink.socket, source.loop.chunk, count)
    else:
        stream_write(sink.stream, source.loop.chunk, count)
    if end_lost(sink):  # found by whoever reads it, after what it sent before
        return 0
    atomic_set64(moved, moved[0] + count, RELAXED)
    return not socket_drained(source, count, limit)


cdef int way_move_stream(Way *self, Stream *source, End *sink, size_t room, uint64_t *moved) noexcept nogil:
    """As way_move_socket."""
    cdef size_t waiting = source.inbound.length
    cdef size_t taken
    if waiting == 0:
        if source.lost.reason:
            return -1
        if source.ended:
            self.ended = True
            end_finish(sink)
        return 0
    if sink.socket != NULL:
        taken = socket_offer(sink.socket, buffer_start(&source.inbound), waiting)
    else:
        taken = min(waiting, room)
        stream_write(sink.stream, buffer_start(&source.inbound), taken)
        if end_lost(sink):
            return 0
    atomic_set64(moved, moved[0] + taken, RELAXED)
    stream_taken(source, taken)
    return 1 if taken == waiting or sink.stream != NULL else 0


cdef int way_move(Way *self, End *source, End *sink, uint64_t *moved) noexcept nogil:
    """As way_move_socket."""
    cdef size_t room
    if self.ended or end_lost(sink):
        return 0
    room = end_room(sink)
    if room == 0:
        return -1 if end_lost(source) else 0  # nobody will read up to the error
    if source.socket != NULL:
        return way_move_socket(self, source.socket, sink, room, moved)
    return way_move_stream(self, source.stream, sink, room, moved)


cdef bint way_lost_unread(const Way *self, const End *source) noexcept nogil:
    """A failed end is found by reading it, after what it sent before; but not when it had ended already."""
    return self.ended and end_lost(source) != 0 and not end_flushed(source)

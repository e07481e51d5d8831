# TCP sockets: options, dialling, and a connected socket as an end of a relay or the transport of a tunnel.
#
# A clean close is FIN, an error is RST: an application behind the mesh sees the difference it would see without it. A
# socket is made to reset (SO_LINGER 0) and changes its mind only when both directions have ended cleanly, so that the
# death of this process, which asks nobody, is an error too.

cdef enum:
    NOTHING = -1             # of socket_read: not now
    FAILED = -2              # see `error`
    DISCARDS = 64            # reads of a peer that goes on sending after our last words
    KEEPALIVE_IDLE = 180     # istio-facts 1.2
    KEEPALIVE_INTERVAL = 180
    KEEPALIVE_PROBES = 9


cdef struct Socket:
    # Owned by whoever holds it (a connection, a tunnel, a group that dials) until socket_close or socket_abort; with
    # socket_linger it owns itself. `changed` is never called after that. Not a byte is read before somebody asks: until
    # then the kernel's buffer is the bound. `out` holds what the kernel has not taken.
    Loop *loop
    int fd
    int watch                # -1: none yet; it begins when there is something to wait for
    Buffer out
    bint connecting
    bint readable
    bint writable
    bint awaits_room         # the watch looks for room, too
    bint handed              # an application's: the kernel may hand us its bytes past TCP
    bint hung                # FIN, or an error: reading on is worth it although a read came back short
    bint finish_wanted
    bint finish_sent
    bint closed
    int error                # errno of its failure; 0: none
    const char *side         # for error texts; static
    Address address          # where it was dialled to
    void (*changed)(void *) noexcept nogil
    void *owner
    Timer timer              # of connecting, of looking again, of lingering
    Peer *peer               # of a tunnel that was accepted: counted until it is closed
    Corpse corpse


cdef void set_option(int fd, int level, int name, int value) noexcept nogil:
    setsockopt(fd, level, name, &value, sizeof(value))


cdef void linger_set(int fd, bint resets) noexcept nogil:
    cdef linger how
    how.l_onoff, how.l_linger = resets, 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &how, sizeof(how))


cdef void tune(int fd) noexcept nogil:
    """Options of every connection's socket; what a listener has, its connections inherit."""
    linger_set(fd, True)
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1)
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1)
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE)
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES)


cdef Socket *socket_new(Loop *loop, int fd, const char *side) noexcept nogil:
    """Takes `fd`. It is watched once a read or a write has found that there is something to wait for."""
    cdef Socket *self = <Socket *>make(sizeof(Socket))
    self.loop, self.fd, self.side = loop, fd, side
    self.watch = -1
    self.readable = self.writable = True
    atomic_add(&loop.shared.descriptors, 1, RELAXED)
    return self


cdef bint socket_watch(Socket *self) noexcept nogil:
    """Idempotent. False, and it has failed: epoll has no room. What happened before is an event, too. Room is looked for
    only by who once had none: a new socket has some, and would be an event for nothing."""
    cdef uint32_t events = EPOLLIN | EPOLLRDHUP | EPOLLET | (EPOLLOUT if self.awaits_room else <uint32_t>0)
    if self.watch >= 0:
        return True
    self.watch = loop_watch(self.loop, self.fd, events, socket_ready, self)
    if self.watch < 0:
        socket_fail(self, errno)
    return self.watch >= 0


cdef void socket_await_room(Socket *self) noexcept nogil:
    """The kernel takes nothing now."""
    self.writable = False
    if self.awaits_room:
        return
    self.awaits_room = True
    if self.watch < 0:
        socket_watch(self)
    elif loop_watch_more(self.loop, self.watch, self.fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET) != 0:
        socket_fail(self, errno)


cdef void socket_dispose(void *of) noexcept nogil:
    cdef Socket *self = <Socket *>of
    buffer_free(&self.out)
    free(self)


cdef void socket_shut(Socket *self, bint resets) noexcept nogil:
    if self.closed:
        return
    self.closed = True
    timer_stop(&self.timer)
    loop_forget(self.loop, self.watch)  # epoll forgets what is closed by itself
    if not resets:
        linger_set(self.fd, False)
    close_(self.fd)
    atomic_add(&self.loop.shared.descriptors, -1, RELAXED)
    self.changed = NULL
    if self.peer != NULL:
        peer_closed(self.loop, self.peer)
        self.peer = NULL
    bury(self.loop, &self.corpse, socket_dispose, self)


cdef void socket_abort(Socket *self) noexcept nogil:
    """Ends in RST."""
    socket_shut(self, True)


cdef void socket_close(Socket *self) noexcept nogil:
    """The kernel goes on sending what it has been given; RST remains for a peer whose bytes nobody read."""
    socket_shut(self, False)


cdef void socket_fail(Socket *self, int code) noexcept nogil:
    if self.error == 0:
        self.error = code
        self.readable = True  # for the reader to find it, after what arrived before


cdef int socket_reason(const Socket *self) noexcept nogil:
    return RESET_BY_PEER if self.error == ECONNRESET or self.error == EPIPE else CONNECT_FAILED


cdef const char *error_text(int code) noexcept nogil:
    cdef const char *text = strerrordesc_np(code)
    return text if text != NULL else <const char *>b"unknown error"


cdef ssize_t socket_read(Socket *self, uint8_t *into, size_t limit) noexcept nogil:
    """Bytes, 0 at the clean end, NOTHING or FAILED."""
    cdef ssize_t count
    if self.closed:
        return FAILED
    if not self.readable:
        return NOTHING
    count = recv_(self.fd, into, limit, 0)
    while count < 0 and errno == EINTR:  # what has come is no further edge: nobody would ask again
        count = recv_(self.fd, into, limit, 0)
    if count > 0:
        return count
    if count == 0:
        return 0 if self.error == 0 else FAILED  # a poll may take the socket's error: that is no clean end
    if errno == EAGAIN:
        if self.error == 0:
            self.readable = False
            if socket_watch(self):
                return NOTHING
        return FAILED
    socket_fail(self, errno)
    return FAILED


cdef bint socket_drained(Socket *self, size_t count, size_t limit) noexcept nogil:
    """After a read of `count`: nothing is left, the next byte is another edge, and nobody need ask again. A socket that is
    handed bytes past TCP has two queues, and a read empties one of them: the other is looked at when it has been silent
    for a moment. A read that finds nothing after each one that found something would cost a busy thread more."""
    if count == limit or self.hung or not socket_watch(self):
        return False
    self.readable = False
    if self.handed:
        timer_start(self.loop, &self.timer, LOOK, socket_look, self)
    return True


cdef void socket_look(void *of) noexcept nogil:
    cdef Socket *self = <Socket *>of
    self.readable = True
    if self.changed != NULL:
        self.changed(self.owner)


cdef size_t socket_offer(Socket *self, const uint8_t *data, size_t length) noexcept nogil:
    """How many of these the kernel takes now. A failure is found by whoever reads, after what the peer sent before."""
    cdef size_t sent = 0
    cdef ssize_t count
    while sent < length and self.writable and self.error == 0 and not self.closed:
        count = send_(self.fd, data + sent, length - sent, MSG_NOSIGNAL)
        if count > 0:
            sent += count
        elif count == 0:  # never, by send(2); a thread would try for ever
            socket_fail(self, EPIPE)
        elif errno == EAGAIN:
            socket_await_room(self)
        elif errno != EINTR:
            socket_fail(self, errno)
    return sent


cdef size_t socket_offer_pieces(Socket *self, iovec *pieces, size_t count, size_t length) noexcept nogil:
    """As socket_offer, of several pieces with `length` bytes together."""
    cdef msghdr message
    cdef ssize_t sent
    if not self.writable or self.error or self.closed:
        return 0
    if count == 1:
        return socket_offer(self, <const uint8_t *>pieces[0].iov_base, length)
    memset(&message, 0, sizeof(message))
    message.msg_iov, message.msg_iovlen = pieces, count
    sent = sendmsg(self.fd, &message, MSG_NOSIGNAL)
    if sent >= 0:
        return sent  # what it did not take is found out by the next try
    if errno == EAGAIN:
        socket_await_room(self)
    elif errno != EINTR:
        socket_fail(self, errno)
    return 0


cdef void socket_write(Socket *self, const uint8_t *data, size_t length) noexcept nogil:
    """Takes all."""
    cdef size_t sent = 0
    if self.error != 0 or self.closed:
        return
    if self.out.length == 0:
        sent = socket_offer(self, data, length)
    if sent < length and self.error == 0 and buffer_append(&self.out, data + sent, length - sent) != 0:
        socket_fail(self, ENOBUFS)


cdef void socket_send(Socket *self) noexcept nogil:
    """What waits in `out`, as far as the kernel takes it; then the FIN, if it is wanted."""
    if self.closed:
        return
    if self.error != 0:
        buffer_drop(&self.out, self.out.length)
        return
    if self.out.length:
        buffer_drop(&self.out, socket_offer(self, buffer_start(&self.out), self.out.length))
    if self.finish_wanted and self.out.length == 0 and not self.finish_sent and self.error == 0:
        self.finish_sent = True
        if shutdown_(self.fd, SHUT_WR) != 0:
            socket_fail(self, errno)


cdef void socket_finish(Socket *self) noexcept nogil:
    """No more will be written: FIN after what waits. Reading goes on."""
    self.finish_wanted = True
    socket_send(self)


cdef int socket_pending_error(int fd) noexcept nogil:
    cdef int code = 0
    cdef socklen_t size = sizeof(code)
    return code if getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &size) == 0 else errno


cdef void socket_ready(void *of, uint32_t events) noexcept nogil:
    cdef Socket *self = <Socket *>of
    cdef int code
    if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        self.readable = True
    if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        self.hung = True
    if events & (EPOLLOUT | EPOLLHUP | EPOLLERR):
        self.writable = True
    if self.connecting:  # what came with the connection, a FIN too, is another edge never again
        if events & (EPOLLOUT | EPOLLERR | EPOLLHUP):
            dial_settle(self, socket_pending_error(self.fd))
        return
    if events & EPOLLERR:
        code = socket_pending_error(self.fd)
        if code:
            socket_fail(self, code)
    if self.out.length or self.finish_wanted:
        socket_send(self)
    if self.changed != NULL:
        self.changed(self.owner)


# Dialling


cdef void dial_settle(Socket *self, int code) noexcept nogil:
    """`changed` hears of it: connected if `error` is 0."""
    self.connecting = False
    timer_stop(&self.timer)
    if code:
        socket_fail(self, code)
    if self.changed != NULL:
        self.changed(self.owner)


cdef void dial_late(void *of) noexcept nogil:
    dial_settle(<Socket *>of, ETIMEDOUT)


cdef void dial_at_once(void *of) noexcept nogil:
    cdef Socket *self = <Socket *>of
    dial_settle(self, self.error)


cdef Socket *dial(
    Loop *loop, int fd, const Address *to, const char *side, void (*changed)(void *) noexcept nogil, void *owner
) noexcept nogil:
    """Connect `fd`, which it takes. While it is `connecting`, `changed` will be called once that is settled, never from
    here; otherwise it is settled: connected if `error` is 0."""
    cdef Socket *self = socket_new(loop, fd, side)
    cdef int code = dial_begin(fd, to)
    self.address = to[0]
    self.changed, self.owner = changed, owner
    if code == EALREADY:
        self.connecting = self.awaits_room = True
        timer_start(loop, &self.timer, CONNECT, dial_late, self)
    elif code:
        socket_fail(self, code)
        return self
    self.readable = False  # whatever comes is an event
    if not socket_watch(self) and self.connecting:
        dial_soon(self)
    return self


cdef int dial_begin(int fd, const Address *to) noexcept nogil:
    """errno; EALREADY: it is under way. A peer on this machine has mostly answered before connect(2) returns, although
    that says EINPROGRESS; asked again it knows, for less than an event costs."""
    if connect_(fd, &to.any, address_size(to)) == 0:
        return 0
    if errno != EINPROGRESS:
        return errno
    return 0 if connect_(fd, &to.any, address_size(to)) == 0 else errno


cdef void dial_soon(Socket *self) noexcept nogil:
    """`changed` is called in this thread's next round."""
    self.connecting = True
    loop_soon(self.loop, &self.timer, dial_at_once, self)


cdef void loop_soon(Loop *loop, Timer *timer, void (*fire)(void *) noexcept nogil, void *owner) noexcept nogil:
    """A timer that is due at once: it stands before the others of a list."""
    cdef Timers *list = &loop.timers[<int>CONNECT]
    timer_stop(timer)
    timer.due = loop.now
    timer.fire, timer.owner, timer.list = fire, owner, list
    timer.following = list.first
    timer.previous = NULL
    if list.first != NULL:
        list.first.previous = timer
    else:
        list.last = timer
    list.first = timer


cdef void dial_error(const Socket *self, char *into, size_t size) noexcept nogil:
    cdef char address[ADDRESS_TEXT]
    address_text(&self.address, address)
    snprintf(into, size, b"connect to %s: %s", address, error_text(self.error))


# Last words


cdef void linger_discard(void *of) noexcept nogil:
    """What still arrives; it is closed when the peer has ended."""
    cdef Socket *self = <Socket *>of
    cdef ssize_t count = 1
    cdef int i
    for i in range(DISCARDS):
        count = socket_read(self, self.loop.chunk, CHUNK)
        if count <= 0:
            break
    if count != NOTHING and count <= 0:
        socket_close(self)


cdef void linger_over(void *of) noexcept nogil:
    socket_close(<Socket *>of)


cdef void socket_linger(Socket *self) noexcept nogil:
    """Finish, discard what still arrives, and close when the peer has ended or after a while: a peer with bytes under
    way would otherwise be sent RST, which can overtake our last ones. It belongs to itself from here on."""
    self.changed, self.owner = linger_discard, self
    timer_start(self.loop, &self.timer, LINGER, linger_over, self)
    socket_finish(self)
    linger_discard(self)

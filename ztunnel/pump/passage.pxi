# A connection under a standing order: Python is told of it when it is over, with all others like it, or once it has
# lived for a while. What ends in an error is told of by itself, at once.


cdef struct Passage:
    # What Python has not been told. Owned by its connection, until it has.
    Standing *standing       # held
    uint64_t alternative     # that it went by
    bint captured
    double begun
    Address client
    char trace[56]           # sent with the CONNECT, or received with it; empty: none
    char *peer               # who the upstream has proved to be; NULL: nobody
    Address upstream
    Timer due


cdef void passage_begin(
    Connection *self, Standing *standing, bint captured, const Address *client, const char *trace
) noexcept nogil:
    """It may be over when this returns."""
    cdef Loop *loop = self.loop
    cdef Alternative *chosen = standing_draw(standing, &loop.lots)
    cdef Passage *passage = <Passage *>make(sizeof(Passage))
    standing.holders += 1
    passage.standing, passage.alternative, passage.captured = standing, chosen.number, captured
    passage.begun, passage.client = loop.now, client[0]
    self.passage, self.ordered = passage, True
    timer_stop(&self.timer)
    timer_start(loop, &passage.due, TELL, passage_due, self)
    if chosen.tunnel:
        trace_new(passage.trace, &loop.lots)
        passage_order(self, &chosen.order)
        connection_tunnel(self)
    else:
        strcpy(passage.trace, trace)
        passage_dial(self, chosen)


cdef void passage_order(Connection *self, Buffer *order) noexcept nogil:
    """The order of this one connection: holes are filled in."""
    cdef Batch filled
    cdef Cursor from_
    cdef const uint8_t *begin = buffer_start(order)
    cdef Address address
    cdef size_t length
    cdef const char *text
    cdef uint64_t count
    cdef int i
    memset(&filled, 0, sizeof(filled))
    from_.at, from_.end = begin, begin + order.length
    read_address(&from_, &address)
    for i in range(4):
        cursor_bytes(&from_, &length)
    count = cursor_number(&from_)
    batch_put(&filled, begin, from_.at - begin)
    while count:
        text = cursor_bytes(&from_, &length)
        batch_bytes(&filled, text, length)
        text = cursor_bytes(&from_, &length)
        passage_fill(self.passage, &filled, text, length)
        count -= 1
    self.order = filled.records


cdef void passage_fill(Passage *self, Batch *into, const char *value, size_t length) noexcept nogil:
    cdef char port[8]
    cdef const char *text
    cdef size_t at = into.records.length, i, since = 0
    cdef uint64_t size
    snprintf(port, sizeof(port), b"%d", <int>address_port(&self.client))
    batch_number(into, 0)
    for i in range(length):
        if value[i] == HOLE_PORT or value[i] == HOLE_TRACE:
            batch_put(into, value + since, i - since)
            text = port
            if value[i] == HOLE_TRACE:
                text = self.trace
            batch_put(into, text, strlen(text))
            since = i + 1
    batch_put(into, value + since, length - since)
    size = into.records.length - at - sizeof(size)
    memcpy(<uint8_t *>buffer_start(&into.records) + at, &size, sizeof(size))


cdef void passage_dial(Connection *self, Alternative *chosen) noexcept nogil:
    """Plain TCP from inside the pod; a last hop comes from the pod's own address, and is announced."""
    cdef Loop *loop = self.loop
    cdef Address to = chosen.address
    cdef Address from_ = chosen.address
    cdef uint64_t cookie = 0
    cdef socklen_t size = sizeof(cookie)
    cdef bint last_hop = chosen.last_hop
    cdef char why[200]
    cdef char address[ADDRESS_TEXT]
    cdef int fd
    if self.down.stream != NULL and buffer_append(
        &self.headers, buffer_start(&chosen.order), chosen.order.length
    ) != 0:
        die(b"out of memory")
    fd = stock_take(self.pod, to.any.sa_family)
    if fd < 0:
        snprintf(why, sizeof(why), b"no socket in the pod's netns: %s", error_text(errno))
        connection_fail(self, CONNECT_FAILED, why)
        return
    if last_hop:
        set_option(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        from_.four.sin_port = 0  # at the same place in sockaddr_in6
        if bind_(fd, &from_.any, address_size(&from_)) != 0:
            address_ip(&from_, address)
            snprintf(why, sizeof(why), b"bind to %s: %s", address, error_text(errno))
            close_(fd)
            connection_fail(self, CONNECT_FAILED, why)
            return
        getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size)
        if announce(&loop.shared.maps, cookie, &self.passage.client) != 0:
            close_(fd)
            connection_fail(self, INTERNAL, b"an order could not be carried out")
            return
        self.announced = cookie
    connection_dial(self, fd, &to)


cdef void passage_opened(Passage *self, const char *peer, const Address *upstream) noexcept nogil:
    self.peer = copy_text(peer, strlen(peer)) if peer != NULL else NULL
    self.upstream = upstream[0]


cdef void passage_free(Connection *self) noexcept nogil:
    timer_stop(&self.passage.due)
    standing_release(self.pod, self.passage.standing)
    free(self.passage.peer)
    free(self.passage)
    self.passage = NULL


# What Python is told


cdef bint passage_charge(Connection *self) noexcept nogil:
    return inquiry_told(self.pod, self.passage.captured, &self.passage.client)


cdef void passage_due(void *of) noexcept nogil:
    """It lives: it is one of those that are listed, and judged anew. Who opens more of them than there is time for waits:
    they are told of together when they are over by then."""
    cdef Connection *self = <Connection *>of
    if passage_charge(self):
        passage_tell(self)
    else:
        timer_start(self.loop, &self.passage.due, TELL, passage_due, self)


cdef void passage_tell(Connection *self) noexcept nogil:
    fact_begun(self, self.passage)
    if self.relaying:
        fact_opened(self, self.passage.peer, &self.passage.upstream)
    passage_free(self)


cdef void passages_tell(Loop *loop, uint64_t number) noexcept nogil:
    """All that live, of one pod or, for 0, of all, whatever it costs."""
    cdef Timer *timer = loop.timers[<int>TELL].first
    cdef Timer *after
    cdef Connection *connection
    while timer != NULL:
        after = timer.following
        connection = <Connection *>timer.owner
        if number == 0 or connection.pod.number == number:
            passage_tell(connection)
        timer = after


cdef bint passage_over(Connection *self, int reason) noexcept nogil:
    """Whether all is said about it."""
    if reason == OK and self.relaying:
        fact_passed(self, self.passage)
        free(self.meter)
        self.meter = NULL
        passage_free(self)
        return True
    if not passage_charge(self):
        passage_ask(self)
    passage_tell(self)
    return False


cdef void passage_ask(Connection *self) noexcept nogil:
    """Connections of this kind fail faster than Python has time for. It is asked about the next ones, and so they are
    limited as what is asked about is; by the pod's home, which accepts them."""
    cdef Loop *loop = self.loop
    cdef Standing *standing = self.passage.standing
    cdef Loop *home = loop.shared.loops[self.pod.number % loop.shared.threads]
    standing.off = True
    if home == loop:
        return
    batch_begin(&loop.posts, ORDER_ASK)
    batch_number(&loop.posts, self.pod.number)
    batch_bytes(&loop.posts, buffer_start(&standing.kind), standing.kind.length)
    loop_post(loop, home)

# One connection from its fact to its Ended: waits for the order, dials, relays.


cdef struct Connection:
    # Owned by its pod, found by id; freed when it is over. Until the upstream is up nothing is read from downstream, but
    # what goes with a CONNECT.
    Loop *loop
    Pod *pod
    uint64_t id
    Connection *chained      # in the table of ids
    Connection *previous     # of the pod
    Connection *following
    Group *group             # where it waits for a tunnel; NULL: nowhere
    Connection *before
    Connection *behind
    End down
    End up
    Way forward
    Way backward
    Meter *meter
    Passage *passage         # owned; NULL: Python knows of it
    Socket *dial
    uint64_t announced       # socket cookie of the last hop; 0: none
    Buffer order             # RelayTunnel as it came, until the CONNECT is answered: it may have to be sent again
    Buffer early             # what was sent with the CONNECT, until that is answered
    Buffer headers           # of the 200 to a tunnel request
    long attempts
    bint promised            # a descriptor for its upstream
    bint ordered
    bint relaying
    bint owes                # the answer to the CONNECT that it is
    bint over
    Timer timer
    Task step
    Corpse corpse


cdef struct Connections:
    # By id.
    Connection **chains
    uint64_t size
    uint64_t count


cdef Connection *connection_find(Loop *loop, uint64_t id) noexcept nogil:
    cdef Connections *table = &loop.connections
    cdef Connection *found
    if table.count == 0:
        return NULL
    found = table.chains[id / loop.shared.threads & (table.size - 1)]
    while found != NULL and found.id != id:
        found = found.chained
    return found


cdef void connections_grow(Loop *loop) noexcept nogil:
    cdef Connections *table = &loop.connections
    cdef uint64_t size = max(table.size * 2, <uint64_t>64)
    cdef Connection **chains = <Connection **>make(size * sizeof(Connection *))
    cdef Connection *moved
    cdef uint64_t i, to
    for i in range(table.size):
        while table.chains[i] != NULL:
            moved = table.chains[i]
            table.chains[i] = moved.chained
            to = moved.id / loop.shared.threads & (size - 1)
            moved.chained = chains[to]
            chains[to] = moved
    free(table.chains)
    table.chains, table.size = chains, size


cdef void connections_free(Connections *self) noexcept nogil:
    free(self.chains)
    self.chains = NULL


cdef Connection *connection_new(Pod *pod) noexcept nogil:
    cdef Loop *loop = pod.loop
    cdef Connections *table = &loop.connections
    cdef Connection *self = <Connection *>make(sizeof(Connection))
    cdef uint64_t at
    if table.count >= table.size:
        connections_grow(loop)
    loop.serial += 1
    self.id = loop.serial * loop.shared.threads + loop.index  # the id tells the thread
    self.loop, self.pod = loop, pod
    self.meter = <Meter *>make(sizeof(Meter))
    at = loop.serial & (table.size - 1)
    self.chained = table.chains[at]
    table.chains[at] = self
    table.count += 1
    self.following = pod.first
    if pod.first != NULL:
        pod.first.previous = self
    pod.first = self
    atomic_add(&pod.share.connections, 1, RELAXED)
    atomic_add(&loop.shared.connections, 1, RELAXED)
    self.promised = True
    atomic_add(&loop.shared.descriptors, 1, RELAXED)
    self.step.run, self.step.owner = connection_step, self
    timer_start(loop, &self.timer, DECISION, connection_undecided, self)
    return self


cdef void connection_accept(
    Pod *pod, int fd, bint captured, const Address *peer, const Address *local, const Kind *kind
) noexcept nogil:
    """Takes `fd`."""
    cdef Standing *standing = standing_find(pod, kind)
    cdef Connection *self = connection_new(pod)
    connection_take_socket(self, &self.down, socket_new(pod.loop, fd, b"downstream"))
    if standing != NULL:
        passage_begin(self, standing, captured, peer, b"")
    else:
        timer_start(pod.loop, &self.timer, PATIENCE, connection_watched, self)
        fact_accepted(self, captured, peer, local, kind)


cdef void connection_dispose(void *of) noexcept nogil:
    cdef Connection *self = <Connection *>of
    buffer_free(&self.order)
    buffer_free(&self.headers)
    free(self)


cdef void connection_unlink(Connection *self) noexcept nogil:
    cdef Connections *table = &self.loop.connections
    cdef Connection **at = &table.chains[self.id / self.loop.shared.threads & (table.size - 1)]
    while at[0] != self:
        at = &at[0].chained
    at[0] = self.chained
    table.count -= 1
    if self.previous != NULL:
        self.previous.following = self.following
    else:
        self.pod.first = self.following
    if self.following != NULL:
        self.following.previous = self.previous
    atomic_add(&self.pod.share.connections, -1, RELAXED)
    atomic_add(&self.loop.shared.connections, -1, RELAXED)


cdef void connection_keep_promise(Connection *self) noexcept nogil:
    """It has the descriptor, or needs none."""
    if self.promised:
        self.promised = False
        atomic_add(&self.loop.shared.descriptors, -1, RELAXED)


cdef void connection_wake(Connection *self) noexcept nogil:
    if not self.over:
        turn_task(self.loop, &self.pod.turn, &self.step)


cdef void connection_socket_changed(void *of) noexcept nogil:
    connection_wake(<Connection *>of)


cdef void connection_take_socket(Connection *self, End *end, Socket *socket) noexcept nogil:
    end.socket = socket
    socket.changed, socket.owner = connection_socket_changed, self
    socket.handed = self.loop.shared.accelerated


cdef void connection_watched(void *of) noexcept nogil:
    """Mostly the order comes first, and nobody looks at the socket for nothing; now it is time to hear of its end."""
    cdef Connection *self = <Connection *>of
    timer_start(self.loop, &self.timer, DECISION, connection_undecided, self)
    if not socket_watch(self.down.socket):
        connection_wake(self)


cdef void connection_undecided(void *of) noexcept nogil:
    cdef Connection *self = <Connection *>of
    cdef char why[64]
    snprintf(why, sizeof(why), b"no decision within %g s", self.loop.timers[<int>DECISION].seconds)
    connection_fail(self, INTERNAL, why)


# The order


cdef bint connection_ordered(Connection *self) noexcept nogil:
    """False: it was given one before."""
    cdef char text[80]
    if self.ordered:
        snprintf(text, sizeof(text), b"connection %llu was given a second order", <unsigned long long>self.id)
        fact_log(self.loop, text)
        return False
    self.ordered = True
    timer_stop(&self.timer)
    return True


cdef void connection_dial(Connection *self, int fd, const Address *to) noexcept nogil:
    """Takes `fd`."""
    connection_keep_promise(self)
    self.dial = dial(self.loop, fd, to, b"upstream", connection_dialled, self)
    if not self.dial.connecting:
        connection_dialled(self)
    elif self.down.socket != NULL and not socket_watch(self.down.socket):
        connection_wake(self)


cdef void connection_dialled(void *of) noexcept nogil:
    cdef Connection *self = <Connection *>of
    cdef Socket *socket = self.dial
    cdef char why[200]
    self.dial = NULL
    if socket.error:
        dial_error(socket, why, sizeof(why))
        socket_abort(socket)
        connection_fail(self, CONNECT_TIMEOUT if socket.error == ETIMEDOUT else CONNECT_FAILED, why)
        return
    self.announced = 0  # the kernel side has taken it over
    connection_take_socket(self, &self.up, socket)
    connection_begin(self, NULL, &socket.address)


cdef void connection_tunnel(Connection *self) noexcept nogil:
    """As `order` says: address, key, source, expected identities; authority and headers follow."""
    cdef Cursor order
    cdef Address address
    cdef size_t length
    cdef const char *key
    cdef Group *group
    cdef char *source
    cdef char *expected
    connection_keep_promise(self)
    self.attempts += 1
    early_read(self)
    connection_cursor(self, &order)
    read_address(&order, &address)
    key = cursor_bytes(&order, &length)
    group = group_find(self.loop, key, length)
    if group == NULL:
        source = cursor_text(&order)
        expected = cursor_text(&order)
        group = group_new(self.pod, key, length, source, expected, &address)
    group_enter(group, self)


cdef void connection_cursor(Connection *self, Cursor *order) noexcept nogil:
    order.at = buffer_start(&self.order)
    order.end = order.at + self.order.length


cdef void connection_assigned(Connection *self, Tunnel *tunnel) noexcept nogil:
    """Here is a tunnel with room: send the CONNECT (RFC 9113 8.5)."""
    cdef Cursor order
    cdef Address address
    cdef Fields fields
    cdef size_t length
    cdef const char *authority
    cdef Stream *stream
    cdef int i
    connection_cursor(self, &order)
    read_address(&order, &address)
    for i in range(3):
        cursor_bytes(&order, &length)
    authority = cursor_bytes(&order, &length)
    fields.count, fields.size, fields.bad = 0, 0, False
    fields_add(&fields, b":method", 7, b"CONNECT", 7)
    fields_add(&fields, b":authority", 10, authority, length)
    fields_read(&fields, &order)
    stream = NULL if fields.bad else tunnel_open(tunnel, &fields)
    if stream == NULL:
        connection_fail(self, INTERNAL, b"the CONNECT cannot be sent")
        return
    self.up.stream = stream
    stream.connection = self
    early_write(self)
    timer_start(self.loop, &self.timer, RESPONSE, connection_unanswered, self)


cdef void connection_unanswered(void *of) noexcept nogil:
    cdef Connection *self = <Connection *>of
    cdef char why[80]
    snprintf(why, sizeof(why), b"no response to the CONNECT within %g s", self.loop.timers[<int>RESPONSE].seconds)
    connection_fail(self, CONNECT_TIMEOUT, why)


cdef void connection_await_answer(Connection *self) noexcept nogil:
    cdef Stream *stream = self.up.stream
    cdef Tunnel *tunnel = stream.tunnel
    cdef char why[32]
    if stream.answer == 200:
        buffer_free(&self.order)
        connection_begin(self, tunnel.peer, &tunnel.address)
    elif stream.answer:
        snprintf(why, sizeof(why), b"http status: %d", stream.answer)
        connection_fail(self, TUNNEL_REFUSED, why)
    elif stream.lost.reason and stream.unprocessed and self.attempts < self.loop.shared.limits.attempts:
        timer_stop(&self.timer)
        end_close(&self.up)
        connection_tunnel(self)
    elif stream.lost.reason:
        connection_fail(self, stream.lost.reason, stream.lost.detail)
    else:
        early_read(self)


# Relaying


cdef void connection_begin(Connection *self, const char *peer, const Address *upstream) noexcept nogil:
    timer_stop(&self.timer)
    atomic_set64(&self.meter.sent, early_free(self), RELAXED)
    self.owes = self.down.stream != NULL
    self.relaying = True
    if self.passage != NULL:
        passage_opened(self.passage, peer, upstream)
    else:
        fact_opened(self, peer, upstream)
    connection_wake(self)


cdef size_t connection_pass_on(
    Connection *self, Stream *from_, iovec *pieces, size_t count, size_t length
) noexcept nogil:
    """Bytes of a stream that are not buffered yet, as far as the socket on the other side takes them now."""
    cdef bint upwards = self.down.stream == from_
    cdef Socket *sink = self.up.socket if upwards else self.down.socket
    cdef uint64_t *moved = &self.meter.sent if upwards else &self.meter.received
    cdef size_t taken
    if self.over or not self.relaying or sink == NULL or sink.out.length:
        return 0
    taken = socket_offer_pieces(sink, pieces, count, length)
    atomic_set64(moved, moved[0] + taken, RELAXED)
    if sink.error:
        connection_wake(self)
    return taken


cdef void connection_fail_as(Connection *self, const End *end) noexcept nogil:
    cdef char why[300]
    end_explain(end, why, sizeof(why))
    connection_fail(self, end_lost(end), why)


cdef void connection_step(void *of) noexcept nogil:
    cdef Connection *self = <Connection *>of
    cdef int forward, backward
    if self.over:
        return
    if not self.relaying:
        if end_lost(&self.down):
            connection_fail_as(self, &self.down)
        elif self.up.stream != NULL:
            connection_await_answer(self)
        elif self.attempts:
            early_read(self)
        return
    forward = way_move(&self.forward, &self.down, &self.up, &self.meter.sent)
    if forward < 0:
        connection_fail_as(self, &self.down)
        return
    backward = way_move(&self.backward, &self.up, &self.down, &self.meter.received) if answered(self) else 0
    if backward < 0:
        connection_fail_as(self, &self.up)
        return
    if way_lost_unread(&self.forward, &self.down):
        connection_fail_as(self, &self.down)
    elif way_lost_unread(&self.backward, &self.up):
        connection_fail_as(self, &self.up)
    elif self.forward.ended and self.backward.ended and end_flushed(&self.down) and end_flushed(&self.up):
        end_close(&self.down)
        end_close(&self.up)
        connection_finish(self, OK, b"")
    elif forward or backward:
        connection_wake(self)


# The end


cdef void connection_fail(Connection *self, int reason, const char *detail) noexcept nogil:
    """With an error on both sides."""
    cdef Stream *refused
    if self.over:
        return
    group_leave(self)
    if self.dial != NULL:
        socket_abort(self.dial)
        self.dial = NULL
    if self.announced:
        fact_withdraw(self.loop, self.announced)
        self.announced = 0
    end_abort(&self.up)
    if self.owes:
        answer(self)  # it was open
    if self.relaying and self.down.stream != NULL and self.meter.received == 0:
        tunnel_flush(self.down.stream.tunnel)  # a reset would overtake an answer that is not framed yet
    if not self.relaying and self.down.stream != NULL:
        refused = self.down.stream
        self.down.stream = NULL
        stream_refuse(refused, self.loop.shared.status[reason])
    else:
        end_abort(&self.down)
    connection_finish(self, reason, detail)


cdef void connection_finish(Connection *self, int reason, const char *detail) noexcept nogil:
    cdef Pod *pod = self.pod
    self.over = True
    connection_keep_promise(self)
    timer_stop(&self.timer)
    task_cancel(&self.step)
    early_free(self)
    if self.passage == NULL or not passage_over(self, reason):
        fact_ended(self, reason, detail)
    connection_unlink(self)
    bury(self.loop, &self.corpse, connection_dispose, self)
    pod_discard_if_unused(pod)

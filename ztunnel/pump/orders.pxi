# What a thread is told: the orders of ztunnel.orders, and those that concern pods.

cdef enum Order:
    ORDER_FAIL               # id, reason, detail, is it a Close?
    ORDER_PLAIN              # id, descriptor, socket cookie, address, headers of the 200
    ORDER_TUNNEL             # id, then as connection_tunnel reads it
    ORDER_POD                # Common, six listeners
    ORDER_START              # pod
    ORDER_CREDENTIALS        # pod, Contexts
    ORDER_UNLISTEN           # pod
    ORDER_DROP               # pod, reason
    ORDER_STAND              # pod, kind, generation, alternatives
    ORDER_RECALL             # pod, kind
    ORDER_LAPSE              # pod, 0: all; fence
    ORDER_RETIRE             # pod: open connections go on, tunnels are given no new ones
    ORDER_PAUSE              # of all pods' listeners
    ORDER_CENSUS             # Census
    ORDER_CLEAR              # drop all pods
    ORDER_STOP
    # Of one thread to another
    ORDER_ASK                # pod, kind: although an order stands
    ORDER_SERVE              # Common, held; descriptor, captured?, peer, local: a connection that was accepted
    ORDER_ADOPT              # Common, held; Tunnel: one that was accepted and verified
    ORDER_FORGET             # Peer: one of its tunnels is closed


cdef void read_address(Cursor *record, Address *into) noexcept nogil:
    memcpy(into, record.at, sizeof(Address))
    record.at += sizeof(Address)


cdef void carry_out(Loop *loop, Cursor *record) noexcept nogil:
    """An unknown or ended id is ignored: it may have ended meanwhile."""
    cdef uint64_t kind = cursor_number(record)
    if kind == ORDER_FAIL:
        order_fail(loop, record)
    elif kind == ORDER_PLAIN:
        order_plain(loop, record)
    elif kind == ORDER_TUNNEL:
        order_tunnel(loop, record)
    elif kind == ORDER_POD:
        order_pod(loop, record)
    elif kind == ORDER_CENSUS:
        census_take(loop, <Census *>cursor_number(record))
    elif kind == ORDER_PAUSE:
        order_pause(loop)
    elif kind == ORDER_CLEAR:
        order_clear(loop)
    elif kind == ORDER_STOP:
        order_stop(loop)
    elif kind == ORDER_SERVE:
        spread_serve(loop, record)
    elif kind == ORDER_ADOPT:
        spread_adopt(loop, record)
    elif kind == ORDER_FORGET:
        peer_closed(loop, <Peer *>cursor_number(record))
    elif kind == ORDER_LAPSE:
        order_lapse(loop, record)
    else:
        order_of_pod(loop, kind, pod_find(loop, cursor_number(record)), record)


cdef void order_fail(Loop *loop, Cursor *record) noexcept nogil:
    cdef Connection *connection = connection_find(loop, cursor_number(record))
    cdef int reason = <int>cursor_number(record)
    cdef char *detail = cursor_text(record)
    if connection != NULL and (cursor_number(record) or connection_ordered(connection)):
        connection_fail(connection, reason, detail)
    free(detail)


cdef void order_plain(Loop *loop, Cursor *record) noexcept nogil:
    cdef Connection *connection = connection_find(loop, cursor_number(record))
    cdef int fd = <int>cursor_number(record)
    cdef uint64_t cookie = cursor_number(record)
    cdef Address address
    read_address(record, &address)
    if connection == NULL or not connection_ordered(connection):
        close_(fd)
        if cookie:
            fact_withdraw(loop, cookie)
        return
    connection.announced = cookie
    if connection.down.stream != NULL and buffer_append(
        &connection.headers, record.at, record.end - record.at
    ) != 0:
        die(b"out of memory")
    connection_dial(connection, fd, &address)


cdef void order_tunnel(Loop *loop, Cursor *record) noexcept nogil:
    cdef Connection *connection = connection_find(loop, cursor_number(record))
    if connection == NULL or not connection_ordered(connection):
        return
    if buffer_append(&connection.order, record.at, record.end - record.at) != 0:
        die(b"out of memory")
    connection_tunnel(connection)


cdef void order_pod(Loop *loop, Cursor *record) noexcept nogil:
    """A new one, or one whose connections of before are open still."""
    cdef Common *common = <Common *>cursor_number(record)
    cdef Pod *pod = pod_find(loop, common.number)
    cdef int door
    if pod == NULL:
        pod = pod_new(loop, common.number)
    pod_close_listeners(pod)
    pod_live(pod, common)
    passages_tell(loop, pod.number)
    standing_lapse(pod)
    for door in range(DOORS):
        pod.listeners[door].fd = <int>cursor_number(record)


cdef void order_of_pod(Loop *loop, uint64_t kind, Pod *pod, Cursor *record) noexcept nogil:
    cdef Contexts *contexts
    cdef const uint8_t *data
    cdef size_t length
    cdef int door
    if kind == ORDER_CREDENTIALS:
        contexts = <Contexts *>cursor_number(record)
        if pod == NULL:
            contexts_release(contexts)
            return
        contexts_release(pod.contexts)
        pod.contexts = contexts
        groups_of(pod, False, OK, b"")
    elif pod == NULL:
        return
    elif kind == ORDER_STAND:
        standing_put(pod, standing_read(record))
    elif kind == ORDER_RECALL:
        data = <const uint8_t *>cursor_bytes(record, &length)
        standing_recall(pod, data, length)
    elif kind == ORDER_ASK:
        data = <const uint8_t *>cursor_bytes(record, &length)
        standing_off(pod, data, length)
    elif kind == ORDER_START:
        for door in range(DOORS):
            listener_start(&pod.listeners[door])
    elif kind == ORDER_UNLISTEN:
        pod_close_listeners(pod)
        pod_announce_end(pod)
        pod_discard_if_unused(pod)
    elif kind == ORDER_DROP:
        pod_drop(pod, <int>cursor_number(record), b"")
    elif kind == ORDER_RETIRE:
        groups_of(pod, False, OK, b"")


cdef void order_lapse(Loop *loop, Cursor *record) noexcept nogil:
    """Who lives under what lapses is told of, before the fence."""
    cdef uint64_t number = cursor_number(record)
    cdef Pod *pod = loop.pods
    passages_tell(loop, number)
    while pod != NULL:
        if number == 0 or number == pod.number:
            standing_lapse(pod)
        pod = pod.chained
    fact_lapsed(loop, cursor_number(record))


cdef void order_pause(Loop *loop) noexcept nogil:
    cdef Pod *pod = loop.pods
    cdef int door
    while pod != NULL:
        for door in range(DOORS):
            listener_pause(&pod.listeners[door])
        pod = pod.chained


cdef void order_clear(Loop *loop) noexcept nogil:
    while loop.pods != NULL:
        pod_drop(loop.pods, DRAINED, b"")


cdef void order_stop(Loop *loop) noexcept nogil:
    """The end; what still says its last words has said them."""
    while loop.timers[<int>LINGER].first != NULL:
        socket_close(<Socket *>loop.timers[<int>LINGER].first.owner)
    loop.stopped = True


# A look inside


cdef struct View:
    uint64_t pod
    bint server
    bint ready               # through its handshake
    bint retired
    int64_t streams
    uint64_t backlog
    Address address


cdef struct Census:
    # Filled by the thread while Python waits. `peers` counts addresses that have, or just had, a tunnel.
    View *views              # owned by Python
    size_t count
    size_t room
    int64_t groups
    int64_t peers


cdef void census_tunnel(Census *self, Tunnel *tunnel) noexcept nogil:
    cdef View *view
    if self.count < self.room:
        view = &self.views[self.count]
        view.pod, view.server, view.ready = tunnel.pod.number, tunnel.group == NULL, tunnel.session != NULL
        view.retired, view.streams = tunnel_retired(tunnel), tunnel.streams.count
        view.backlog, view.address = tunnel_backlog(tunnel), tunnel.address
    self.count += 1


cdef void census_take(Loop *loop, Census *self) noexcept nogil:
    cdef Pod *pod = loop.pods
    cdef Group *group
    cdef Tunnel *tunnel
    cdef Peer *peer
    cdef int i
    while pod != NULL:
        tunnel = pod.tunnels
        while tunnel != NULL:
            census_tunnel(self, tunnel)
            tunnel = tunnel.following
        pod = pod.chained
    for i in range(GROUP_CHAINS):
        group = loop.groups.chains[i]
        while group != NULL:
            self.groups += 1
            tunnel = group.tunnels
            while tunnel != NULL:
                census_tunnel(self, tunnel)
                tunnel = tunnel.following
            group = group.chained
    for i in range(PEER_CHAINS):
        peer = loop.peers.chains[i]
        while peer != NULL:
            self.peers += 1
            peer = peer.chained

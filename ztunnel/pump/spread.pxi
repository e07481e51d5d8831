# Which thread serves what of a pod.
#
# A pod has a home: the thread that its number names. There its listeners are, connections are accepted and handshakes
# made, so that what strangers cost stays on one thread and is counted in one place. What is served, once it is known to
# be honest, may be handed to another thread, for good: a captured or plaintext connection with its first fact, a tunnel
# between TLS and HTTP/2. Each thread makes the tunnels of the connections it serves, so a second thread means a second
# tunnel, which the peer's node in turn may give to another of its threads.
#
# Streams that share a tunnel share records and writes: a few connections stay together, and only what one thread cannot
# carry, or many, are spread.

cdef enum:
    TOGETHER = 16            # connections that a pod's home has more than another thread before that one gets some
    HEAVY = 700              # thousandths of a core: a thread that uses them is busy,
    LIGHT = 400              # and one that uses no more is not

cdef double LOAD_WINDOW = 0.05


cdef struct Load:
    double since             # monotonic
    double used              # seconds of this thread's processor time until then
    long heavy               # atomic; thousandths of a core, in the window before
    long measured            # atomic; when, in milliseconds


cdef inline void load_measure(Load *self, double now, double awake) noexcept nogil:
    """`awake`: seconds so far that it has waited without sleeping: that is no load."""
    cdef timespec clock
    cdef double used
    if now - self.since < LOAD_WINDOW:
        return
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &clock)
    used = clock.tv_sec + clock.tv_nsec * 1e-9 - awake
    atomic_set(&self.heavy, <long>(max(used - self.used, 0.0) / (now - self.since) * 1000), RELAXED)
    atomic_set(&self.measured, <long>(now * 1000), RELAXED)
    self.since, self.used = now, used


cdef long load_of(Loop *loop, double now) noexcept nogil:
    """Thousandths of a core that this thread used lately; one that sleeps measures nothing."""
    cdef double age = now - atomic_get(&loop.load.measured, RELAXED) * 1e-3
    return 0 if age > 4 * LOAD_WINDOW else atomic_get(&loop.load.heavy, RELAXED)


cdef Loop *spread_connection(Pod *pod) noexcept nogil:
    """Who serves one more."""
    cdef Loop *home = pod.loop
    cdef Loop *other
    cdef Loop *found = home
    cdef Share *shares = pod.common.shares
    cdef long here = share_connections(pod.share)
    cdef long least = here, there
    cdef bint heavy = load_of(home, home.now) >= HEAVY
    cdef int64_t i
    for i in range(home.shared.threads):
        other = home.shared.loops[i]
        there = share_connections(&shares[i])
        if other == home or there + TOGETHER > here and not (heavy and load_of(other, home.now) <= LIGHT):
            continue
        if found == home or there < least:
            found, least = other, there
    return found


cdef Loop *spread_tunnel(Pod *pod) noexcept nogil:
    """Who serves one more that was accepted: it may carry many connections, and they come in numbers only from peers
    that have much to say."""
    cdef Loop *home = pod.loop
    cdef Loop *found = home
    cdef Share *shares = pod.common.shares
    cdef long least = share_tunnels(pod.share) - 1  # this one is here still
    cdef long there
    cdef int64_t i
    for i in range(home.shared.threads):
        there = share_tunnels(&shares[i])
        if there < least:
            found, least = home.shared.loops[i], there
    return found


cdef inline void transit_count(Shared *shared, Share *share, long change) noexcept nogil:
    """A connection on its way counts as if it had arrived: itself, its descriptor and the one that it will dial."""
    atomic_add(&share.coming, change, RELAXED)
    atomic_add(&shared.connections, change, RELAXED)
    atomic_add(&shared.descriptors, 2 * change, RELAXED)


cdef void spread_send(
    Pod *pod, Loop *to, int fd, bint captured, const Address *peer, const Address *local, const Kind *kind
) noexcept nogil:
    cdef Batch *posts = &pod.loop.posts
    transit_count(pod.loop.shared, &pod.common.shares[to.index], 1)
    common_hold(pod.common)
    batch_begin(posts, ORDER_SERVE)
    batch_number(posts, <uint64_t>pod.common)
    batch_number(posts, fd)
    batch_number(posts, captured)
    batch_put(posts, peer, sizeof(Address))
    batch_put(posts, local, sizeof(Address))
    batch_bytes(posts, kind.data, kind.length)
    loop_post(pod.loop, to)


cdef void spread_serve(Loop *loop, Cursor *record) noexcept nogil:
    """In whichever of its lives the pod is here by now."""
    cdef Common *sent_in = <Common *>cursor_number(record)
    cdef Pod *pod = pod_find(loop, sent_in.number)
    cdef int fd = <int>cursor_number(record)
    cdef bint captured = cursor_number(record)
    cdef Address peer, local
    cdef Kind kind
    cdef const char *data
    read_address(record, &peer)
    read_address(record, &local)
    data = cursor_bytes(record, &kind.length)
    memcpy(kind.data, data, kind.length)
    transit_count(loop.shared, &sent_in.shares[loop.index], -1)
    common_let_go(loop, sent_in)
    if pod == NULL:
        close_(fd)  # it is gone: RST
    else:
        connection_accept(pod, fd, captured, &peer, &local, &kind)


cdef void spread_hand_over(Tunnel *tunnel) noexcept nogil:
    """Nothing here refers to it any more."""
    cdef Loop *loop = tunnel.loop
    cdef Loop *to = tunnel.bound_for
    if buffer_append(&tunnel.early, loop.feed, loop.feed_left) != 0:
        tunnel_lose(tunnel, INTERNAL, b"out of memory")
        return
    timer_stop(&tunnel.timer)
    task_cancel(&tunnel.step)
    task_cancel(&tunnel.flush)
    task_cancel(&tunnel.freed)
    loop_unwatch(loop, tunnel.socket.watch, tunnel.socket.fd)
    tunnel.socket.watch = -1
    server_unlink(tunnel)
    atomic_add(&tunnel.pod.common.shares[to.index].coming_tunnels, 1, RELAXED)
    common_hold(tunnel.pod.common)
    tunnel_count(tunnel, 0)
    tunnel.bound_for = NULL
    batch_begin(&loop.posts, ORDER_ADOPT)
    batch_number(&loop.posts, <uint64_t>tunnel.pod.common)
    batch_number(&loop.posts, <uint64_t>tunnel)
    loop_post(loop, to)


cdef void spread_adopt(Loop *loop, Cursor *record) noexcept nogil:
    """As spread_serve."""
    cdef Common *sent_in = <Common *>cursor_number(record)
    cdef Pod *pod = pod_find(loop, sent_in.number)
    cdef Tunnel *tunnel = <Tunnel *>cursor_number(record)
    cdef Socket *socket = tunnel.socket
    tunnel.loop = socket.loop = loop
    tunnel.pod = pod
    atomic_add(&sent_in.shares[loop.index].coming_tunnels, -1, RELAXED)
    common_let_go(loop, sent_in)
    if pod == NULL:  # dropped meanwhile
        socket_abort(socket)
        atomic_add(&loop.shared.tunnels, -1, RELAXED)
        tunnel_dispose(tunnel)
        fact_quiet(loop)
        return
    server_link(tunnel)
    socket.readable = socket.writable = True
    if not socket_watch(socket):
        tunnel_lose(tunnel, INTERNAL, b"epoll has no room")
        return
    if not tunnel_speak(tunnel):
        return
    loop.feed, loop.feed_left = buffer_start(&tunnel.early), tunnel.early.length
    if tunnel_take(tunnel):
        buffer_free(&tunnel.early)
        turn_task(loop, &pod.turn, &tunnel.step)
    loop.feed_left = 0  # a tunnel that is over has not taken all, and goes with its `early`

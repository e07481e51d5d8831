# Tunnel connections to one pod: accept, bound, verify, and offer each request.

cdef enum:
    PEER_CHAINS = 256


cdef struct Peer:
    # An address that has tunnels with a pod, of the pod's home, whichever threads serve them; freed with the last.
    # Those that still say their last words count too.
    Loop *home
    Peer *chained
    uint64_t pod
    Address address
    int64_t open_
    int64_t handshaking


cdef struct Peers:
    Peer *chains[256]


cdef uint32_t peer_chain(uint64_t pod, const Address *address) noexcept nogil:
    cdef uint32_t mixed = <uint32_t>pod
    cdef int i
    if address.any.sa_family == AF_INET6:
        for i in range(16):
            mixed = mixed * 31 + address.six.sin6_addr.s6_addr[i]
    else:
        mixed = (mixed * 31 + address.four.sin_addr.s_addr) * <uint32_t>2654435761 >> 7
    return mixed % PEER_CHAINS


cdef Peer *peer_of(Loop *loop, uint64_t pod, const Address *address) noexcept nogil:
    cdef Peer **chain = &loop.peers.chains[peer_chain(pod, address)]
    cdef Peer *found = chain[0]
    while found != NULL and not (found.pod == pod and address_same_ip(&found.address, address)):
        found = found.chained
    if found == NULL:
        found = <Peer *>make(sizeof(Peer))
        found.home, found.pod, found.address = loop, pod, address[0]
        found.chained = chain[0]
        chain[0] = found
    return found


cdef void peer_discard_if_unused(Loop *loop, Peer *self) noexcept nogil:
    cdef Peer **at
    if self.open_ or self.handshaking:
        return
    at = &loop.peers.chains[peer_chain(self.pod, &self.address)]
    while at[0] != self:
        at = &at[0].chained
    at[0] = self.chained
    free(self)


cdef void peers_free(Peers *self) noexcept nogil:
    cdef int i
    cdef Peer *peer
    for i in range(PEER_CHAINS):
        while self.chains[i] != NULL:
            peer = self.chains[i]
            self.chains[i] = peer.chained
            free(peer)


cdef void peer_closed(Loop *loop, Peer *self) noexcept nogil:
    if loop != self.home:
        batch_begin(&loop.posts, ORDER_FORGET)
        batch_number(&loop.posts, <uint64_t>self)
        loop_post(loop, self.home)
        return
    self.open_ -= 1
    peer_discard_if_unused(loop, self)


cdef void server_refuse(Pod *pod, int fd, const Address *from_, int reason, const char *detail) noexcept nogil:
    cdef char address[ADDRESS_TEXT]
    cdef char text[400]
    address_text(from_, address)
    snprintf(text, sizeof(text), b"%s: tunnel from %s%s%s", pod.name, address,
             <const char *>(b": " if detail[0] else b""), detail)
    count_refused(pod.loop, reason, text)
    close_(fd)  # RST


cdef bint server_excess(Pod *pod, const Peer *peer, char *why, size_t size) noexcept nogil:
    """One more tunnel of this peer would be too many; and why."""
    cdef Limits *limits = &pod.loop.shared.limits
    cdef Tunnel *tunnel
    cdef Peer *worst = NULL
    if atomic_get(&pod.loop.shared.descriptors, RELAXED) >= limits.descriptors:
        snprintf(why, size, b"no descriptors are left, of %ld", limits.descriptors)
    elif common_tunnels(pod.common) >= limits.tunnels_per_pod:  # not the last words of strangers: they would keep members out
        snprintf(why, size, b"the pod has %ld already", limits.tunnels_per_pod)
    elif peer.open_ >= limits.tunnels_per_peer:
        snprintf(why, size, b"the peer has %ld already", limits.tunnels_per_peer)
    elif peer.handshaking >= limits.handshakes_per_peer:
        snprintf(why, size, b"%ld handshakes of the peer are pending already", limits.handshakes_per_peer)
    elif pod.handshakes >= limits.handshakes_per_pod:
        tunnel = pod.oldest
        while tunnel != NULL:
            if worst == NULL or tunnel.socket.peer.handshaking > worst.handshaking:
                worst = tunnel.socket.peer
            tunnel = tunnel.younger
        if worst != NULL and peer.handshaking < worst.handshaking:
            # Several silent peers together keep nobody else out: of the one with the most, the oldest goes.
            tunnel = pod.oldest
            while tunnel.socket.peer != worst:
                tunnel = tunnel.younger
            snprintf(why, size, b"%ld handshakes are pending, this one is given up", limits.handshakes_per_pod)
            tunnel_lose(tunnel, LIMIT, why)
            return False
        snprintf(why, size, b"%ld handshakes are pending already", limits.handshakes_per_pod)
    else:
        return False
    return True


cdef bint server_hurried(Pod *pod, const Address *from_, char *why, size_t size) noexcept nogil:
    """Handshakes come too fast; and why."""
    cdef Loop *loop = pod.loop
    cdef Limits *limits = &loop.shared.limits
    cdef Allowance *allowance = allowance_of(&loop.allowances, pod.number, from_)
    cdef bint known = allowance.proved and loop.now - allowance.proved < KNOWN
    if not charge(bucket_of(&allowance.handshakes, &limits.handshakes_of_peer), loop.now):
        snprintf(why, size, b"the peer begins more than %g handshakes per second", limits.handshakes_of_peer.per_second)
    elif not known and not charge(&pod.strangers, loop.now):
        snprintf(why, size, b"strangers begin more than %g handshakes per second", limits.handshakes.per_second)
    else:
        return False
    return True


cdef void server_judged(Tunnel *tunnel, bint proved) noexcept nogil:
    """What its handshake has come to is remembered."""
    cdef Loop *loop = tunnel.loop
    cdef Allowance *allowance = allowance_of(&loop.allowances, tunnel.pod.number, &tunnel.address)
    if proved:
        allowance.proved = loop.now
    else:
        allowance.handshakes.tokens = max(allowance.handshakes.tokens - FAILED_COSTS, 0.0)


cdef void server_limit_resets(Tunnel *tunnel) noexcept nogil:
    """All tunnels of the peer that this thread serves have one budget."""
    cdef Loop *loop = tunnel.loop
    cdef Allowance *allowance = allowance_of(&loop.allowances, tunnel.pod.number, &tunnel.address)
    tunnel.session.resets = bucket_of(&allowance.resets, &loop.shared.limits.server.resets)


cdef void server_accept(Pod *pod, int fd, const Address *from_, const Address *local) noexcept nogil:
    cdef Loop *loop = pod.loop
    cdef Peer *peer = peer_of(loop, pod.number, from_)
    cdef Socket *socket
    cdef Tunnel *tunnel
    cdef char why[128]
    if server_hurried(pod, from_, why, sizeof(why)) or server_excess(pod, peer, why, sizeof(why)):
        server_refuse(pod, fd, from_, LIMIT, why)
        peer_discard_if_unused(loop, peer)
        return
    if pod.contexts == NULL:
        server_refuse(pod, fd, from_, NO_CERTIFICATE, b"")
        peer_discard_if_unused(loop, peer)
        return
    socket = socket_new(loop, fd, b"tunnel")
    peer.open_ += 1
    socket.peer = peer
    tunnel = tunnel_new(loop, socket, pod, NULL, pod.contexts.server, from_)
    if tunnel == NULL:
        return
    tunnel.local = local[0]
    server_link(tunnel)
    tunnel.handshaking = True
    peer.handshaking += 1
    tunnel.older = pod.youngest
    if pod.youngest != NULL:
        pod.youngest.younger = tunnel
    else:
        pod.oldest = tunnel
    pod.youngest = tunnel
    pod.handshakes += 1


cdef void server_link(Tunnel *tunnel) noexcept nogil:
    cdef Pod *pod = tunnel.pod
    tunnel.previous, tunnel.following = NULL, pod.tunnels
    if pod.tunnels != NULL:
        pod.tunnels.previous = tunnel
    pod.tunnels = tunnel
    atomic_add(&pod.share.tunnels, 1, RELAXED)


cdef void server_unlink(Tunnel *tunnel) noexcept nogil:
    cdef Pod *pod = tunnel.pod
    if tunnel.previous != NULL:
        tunnel.previous.following = tunnel.following
    else:
        pod.tunnels = tunnel.following
    if tunnel.following != NULL:
        tunnel.following.previous = tunnel.previous
    atomic_add(&pod.share.tunnels, -1, RELAXED)


cdef void server_ready(Tunnel *tunnel) noexcept nogil:
    """The handshake is over, one way or the other."""
    cdef Pod *pod = tunnel.pod
    if not tunnel.handshaking:
        return
    tunnel.handshaking = False
    pod.handshakes -= 1
    if tunnel.socket.peer != NULL:
        tunnel.socket.peer.handshaking -= 1
    if tunnel.older != NULL:
        tunnel.older.younger = tunnel.younger
    else:
        pod.oldest = tunnel.younger
    if tunnel.younger != NULL:
        tunnel.younger.older = tunnel.older
    else:
        pod.youngest = tunnel.older


cdef void server_over(Tunnel *tunnel, bint shaking, int reason, const char *detail) noexcept nogil:
    cdef Pod *pod = tunnel.pod
    cdef char address[ADDRESS_TEXT]
    cdef char text[1200]
    if shaking or reason == PEER_IDENTITY:
        server_judged(tunnel, False)
    if shaking or reason == PEER_IDENTITY or reason == HTTP2_PROTOCOL:
        address_text(&tunnel.address, address)
        snprintf(text, sizeof(text), b"%s: tunnel from %s: %s", pod.name, address, detail)
        count_refused(pod.loop, reason, text)
    server_unlink(tunnel)
    pod_discard_if_unused(pod)


cdef void server_offered(
    Tunnel *tunnel, Stream *stream, const uint8_t *fields, size_t length, uint32_t count
) noexcept nogil:
    cdef Connection *connection
    cdef Standing *standing
    cdef Request request
    cdef char why[160]
    kind_offered(&request, tunnel, fields, count)
    standing = standing_find(tunnel.pod, &request.kind) if not loop_unheard(tunnel.loop) else NULL
    if pod_excess(tunnel.pod, why, sizeof(why)) or (
        standing == NULL and loop_excess(tunnel.pod, &tunnel.address, why, sizeof(why))
    ):
        count_refused(tunnel.loop, LIMIT, why)
        stream_refuse(stream, tunnel.loop.shared.status[<int>LIMIT])
        return
    connection = connection_new(tunnel.pod)
    connection.down.stream = stream
    stream.connection = connection
    if standing != NULL:
        passage_begin(connection, standing, False, &request.client, request.trace)
    else:
        fact_offered(connection, tunnel, fields, length, count, &request.kind)

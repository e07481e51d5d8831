# What is kept per pod: by each thread for itself, and what they have in common.


cdef struct Share:
    # What one thread serves of a pod, and what is on its way to it. Atomic, all four: all threads read them. What is
    # served moves into the pod's next life; what is on its way belongs to the one that it was sent in.
    long connections
    long tunnels             # accepted
    long coming              # connections
    long coming_tunnels


cdef struct Common:
    # A pod during one of its lives, as all threads know it. Made by Python, and given to each with an order; held by each,
    # and by what is on its way between them; freed, and Python told, by the last one to let go.
    long holders             # atomic
    uint64_t number
    uint64_t life            # as Python counts its enrolments: which one is over
    char *name
    char *trust_domain
    int netns                # owned
    uint64_t cookie          # of the namespace
    int64_t threads
    Share *shares            # of the threads, by index
    core.Bucket captures     # new connections of its own; these three under the lock of Inquiries
    Untold untold            # of them
    core.Bucket inbound      # new connections to it
    long buffered            # atomic, these two; sums of what its threads have
    long growth


cdef struct Pod:
    # Of one thread, and owned by it; freed when it is not listening and has neither connections nor accepted tunnels
    # here, or was dropped. Listeners are its home's only (spread.pxi).
    Loop *loop
    Pod *chained
    uint64_t number
    Common *common           # held
    Share *share             # of this thread, in there
    const char *name         # these three too
    const char *trust_domain
    int netns
    Contexts *contexts       # held; NULL until there are some
    bint listening
    Turn turn
    Listener listeners[6]
    Stock stocks[2]          # IPv4, IPv6
    Connection *first
    Tunnel *tunnels          # accepted
    Tunnel *oldest           # of those in their handshake
    Tunnel *youngest
    long handshakes
    int64_t buffered         # bytes that its tunnels hold on this thread; by pod_hold
    int64_t growth           # of their windows; by pod_grow
    core.Bucket strangers    # handshakes with it of peers that are not known
    Standing **standing      # owned, as are those in it; NULL: none yet
    bint gone
    Corpse corpse


cdef Pod *pod_find(Loop *loop, uint64_t number) noexcept nogil:
    cdef Pod *pod = loop.pods
    while pod != NULL and pod.number != number:
        pod = pod.chained
    return pod


cdef Common *common_new(
    int64_t threads, uint64_t number, uint64_t life, char *name, char *trust_domain, int netns, uint64_t cookie
) noexcept nogil:
    """For so many holders. Takes what it is given."""
    cdef Common *self = <Common *>make(sizeof(Common))
    self.holders = self.threads = threads
    self.number, self.life = number, life
    self.name, self.trust_domain, self.netns, self.cookie = name, trust_domain, netns, cookie
    self.shares = <Share *>make(threads * sizeof(Share))
    return self


cdef void common_release(Loop *loop, Common *self) noexcept nogil:
    if atomic_get(&self.holders, RELAXED) > 1:
        loop_report_now(loop)  # what this thread has to say of the pod comes before another says that it is gone
    common_let_go(loop, self)


cdef inline void common_hold(Common *self) noexcept nogil:
    atomic_add(&self.holders, 1, RELAXED)


cdef void common_let_go(Loop *loop, Common *self) noexcept nogil:
    """Of one that this thread has nothing to say of."""
    if atomic_add(&self.holders, -1, ACQ_REL):
        return
    fact_pod_gone(loop, self)
    close_(self.netns)
    free(self.name)
    free(self.trust_domain)
    free(self.shares)
    free(self)


cdef inline long share_connections(const Share *self) noexcept nogil:
    return atomic_get(&self.connections, RELAXED) + atomic_get(&self.coming, RELAXED)


cdef inline long share_tunnels(const Share *self) noexcept nogil:
    return atomic_get(&self.tunnels, RELAXED) + atomic_get(&self.coming_tunnels, RELAXED)


cdef long common_connections(const Common *self) noexcept nogil:
    cdef long total = 0
    cdef int64_t i
    for i in range(self.threads):
        total += share_connections(&self.shares[i])
    return total


cdef long common_tunnels(const Common *self) noexcept nogil:
    cdef long total = 0
    cdef int64_t i
    for i in range(self.threads):
        total += share_tunnels(&self.shares[i])
    return total


cdef Pod *pod_new(Loop *loop, uint64_t number) noexcept nogil:
    cdef Pod *self = <Pod *>make(sizeof(Pod))
    cdef int door
    self.loop, self.number = loop, number
    self.strangers = loop.shared.limits.handshakes
    for door in range(DOORS):
        self.listeners[door].pod = self
        self.listeners[door].door = door
        self.listeners[door].fd = self.listeners[door].watch = -1
    self.stocks[0].loop = self.stocks[1].loop = loop
    self.stocks[0].family, self.stocks[1].family = AF_INET, AF_INET6
    self.chained = loop.pods
    loop.pods = self
    return self


cdef void pod_live(Pod *self, Common *common) noexcept nogil:
    """A new life begins; takes `common`."""
    cdef Common *before = self.common
    cdef Share *share = &common.shares[self.loop.index]
    if before != NULL:
        atomic_add(&common.buffered, self.buffered, RELAXED)
        atomic_add(&common.growth, self.growth, RELAXED)
        atomic_set(&share.connections, self.share.connections, RELAXED)
        atomic_set(&share.tunnels, self.share.tunnels, RELAXED)
    self.common, self.share, self.listening = common, share, True
    self.name, self.trust_domain, self.netns = common.name, common.trust_domain, common.netns
    if before != NULL:
        common_release(self.loop, before)


cdef void pod_dispose(void *of) noexcept nogil:
    cdef Pod *self = <Pod *>of
    contexts_release(self.contexts)
    standing_lapse(self)
    free(self.standing)
    free(self)


cdef inline void pod_hold(Pod *self, int64_t change) noexcept nogil:
    """Bytes, by its tunnels."""
    self.buffered += change
    if self.common != NULL:
        atomic_add(&self.common.buffered, change, RELAXED)
    atomic_add(&self.loop.shared.buffered, change, RELAXED)


cdef inline void pod_grow(Pod *self, int64_t change) noexcept nogil:
    """Of their windows."""
    self.growth += change
    if self.common != NULL:
        atomic_add(&self.common.growth, change, RELAXED)
    atomic_add(&self.loop.shared.growth, change, RELAXED)


cdef inline int64_t pod_growth(const Pod *self) noexcept nogil:
    """On all threads."""
    return atomic_get(&self.common.growth, RELAXED) if self.common != NULL else self.growth


cdef void pod_close_listeners(Pod *self) noexcept nogil:
    cdef int door
    self.listening = False
    for door in range(DOORS):
        listener_close(&self.listeners[door])
    stock_clear(&self.stocks[0])
    stock_clear(&self.stocks[1])


cdef bint pod_swollen(Pod *self) noexcept nogil:
    """Its tunnels hold as much as they may; or all pods' do, and its own more than what is left for it of that."""
    cdef Limits *limits = &self.loop.shared.limits
    cdef long held = atomic_get(&self.common.buffered, RELAXED) if self.common != NULL else self.buffered
    return held >= limits.buffered_per_pod or held > 0 and held >= (
        limits.buffered - atomic_get(&self.loop.shared.buffered, RELAXED))


cdef bint pod_excess(Pod *self, char *why, size_t size) noexcept nogil:
    """One more connection would be too much; and why. A pod may have no more than the agent has left, in connections and
    in descriptors: however many pods are greedy, there is room for one that is not."""
    cdef Shared *shared = self.loop.shared
    cdef Limits *limits = &shared.limits
    cdef long held = common_connections(self.common)
    cdef long left
    if held >= limits.connections_per_pod:
        snprintf(why, size, b"%s has %ld connections already", self.name, limits.connections_per_pod)
        return True
    left = min(limits.connections - atomic_get(&shared.connections, RELAXED),
               limits.descriptors - atomic_get(&shared.descriptors, RELAXED))
    if held >= left:
        snprintf(why, size, b"%s has %ld connections, all pods together may have %ld more", self.name, held, left)
        return True
    if pod_swollen(self):
        snprintf(why, size, b"%s has %ld bytes in buffers already", self.name, atomic_get(&self.common.buffered, RELAXED))
        return True
    return False


cdef void pod_announce_end(Pod *self) noexcept nogil:
    cdef Tunnel *tunnel = self.tunnels
    cdef Tunnel *after
    while tunnel != NULL:
        after = tunnel.following
        tunnel_announce_end(tunnel)
        tunnel = after


cdef void pod_drop_tunnels(Pod *self, int reason, const char *detail) noexcept nogil:
    while self.tunnels != NULL:
        tunnel_lose(self.tunnels, reason, detail)


cdef void pod_discard_if_unused(Pod *self) noexcept nogil:
    if not self.gone and not self.listening and self.first == NULL and self.tunnels == NULL:
        pod_drop(self, POD_GONE, b"")


cdef void pod_drop(Pod *self, int reason, const char *detail) noexcept nogil:
    """End all it has."""
    cdef Pod **at = &self.loop.pods
    if self.gone:
        return
    self.gone = True
    while at[0] != self:
        at = &at[0].chained
    at[0] = self.chained
    pod_close_listeners(self)
    while self.first != NULL:
        connection_fail(self.first, reason, detail)
    groups_of(self, True, reason, detail)
    pod_drop_tunnels(self, reason, detail)
    turn_leave(&self.turn)
    common_release(self.loop, self.common)
    self.common, self.share, self.name, self.trust_domain, self.netns = NULL, NULL, b"a pod that is gone", b"", -1
    bury(self.loop, &self.corpse, pod_dispose, self)

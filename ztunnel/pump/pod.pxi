# What is kept per pod.


cdef struct Pod:
    # Owned by its loop; freed when it has neither listeners nor connections nor accepted tunnels, or was dropped.
    Loop *loop
    Pod *chained
    uint64_t number
    uint64_t life            # as Python counts its enrolments: which one is over
    char *name
    char *trust_domain
    int netns                # owned
    Contexts *contexts       # owned; NULL until there are some
    Listener listeners[6]
    long connections
    Connection *first
    Tunnel *tunnels          # accepted
    long tunnel_count
    Tunnel *oldest           # of those in their handshake
    Tunnel *youngest
    long handshakes
    bint gone
    Corpse corpse


cdef Pod *pod_find(Loop *loop, uint64_t number) noexcept nogil:
    cdef Pod *pod = loop.pods
    while pod != NULL and pod.number != number:
        pod = pod.chained
    return pod


cdef Pod *pod_new(Loop *loop, uint64_t number, char *name) noexcept nogil:
    """Takes `name`."""
    cdef Pod *self = <Pod *>make(sizeof(Pod))
    cdef int door
    self.loop, self.number, self.name = loop, number, name
    self.netns = -1
    for door in range(DOORS):
        self.listeners[door].pod = self
        self.listeners[door].door = door
        self.listeners[door].fd = self.listeners[door].watch = -1
    self.chained = loop.pods
    loop.pods = self
    return self


cdef void pod_dispose(void *of) noexcept nogil:
    cdef Pod *self = <Pod *>of
    contexts_free(self.contexts)
    free(self.name)
    free(self.trust_domain)
    free(self)


cdef bint pod_listens(const Pod *self) noexcept nogil:
    cdef int door
    for door in range(DOORS):
        if self.listeners[door].fd >= 0:
            return True
    return False


cdef void pod_close_listeners(Pod *self) noexcept nogil:
    cdef int door
    for door in range(DOORS):
        listener_close(&self.listeners[door])


cdef bint pod_excess(Pod *self, char *why, size_t size) noexcept nogil:
    """A pod may have no more connections than the agent has left: however many pods are greedy, there is room for one
    that is not."""
    cdef Limits *limits = &self.loop.shared.limits
    cdef long left
    if self.connections >= limits.connections_per_pod:
        snprintf(why, size, b"%s has %ld connections already", self.name, limits.connections_per_pod)
        return True
    left = limits.connections - atomic_get(&self.loop.shared.connections, RELAXED)
    if self.connections >= left:
        snprintf(why, size, b"%s has %ld connections, all pods together may have %ld more", self.name,
                 self.connections, left)
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
    if not self.gone and self.connections == 0 and self.tunnels == NULL and not pod_listens(self):
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
    close_(self.netns)
    fact_pod_gone(self)
    bury(self.loop, &self.corpse, pod_dispose, self)

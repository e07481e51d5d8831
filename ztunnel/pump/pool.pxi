# Client side tunnels, shared by connections whose TunnelKey is equal.
#
# One connection per key is being made at a time; everybody else waits for it. A tunnel that is full or busy is passed
# over for another; one whose peer is going away, or whose certificate was renewed since, gets no new streams.

cdef enum:
    GROUP_CHAINS = 1024


cdef struct Group:
    # The tunnels of one key, and who waits for one. Owned by the loop; freed when it has neither tunnel nor waiting
    # connection nor a dial.
    Loop *loop
    Pod *pod
    Group *chained
    Buffer key               # every part of the TunnelKey
    char *source
    char *expected           # lines
    Address address
    Connection *first        # waiting
    Connection *last
    Tunnel *tunnels
    Socket *dial
    Tunnel *fresh            # in its handshake
    long fruitless           # tunnels dialled since somebody was given one
    Task serve
    bint gone
    Corpse corpse


cdef struct Groups:
    Group *chains[1024]


cdef uint32_t group_chain(const char *key, size_t length) noexcept nogil:
    cdef uint32_t mixed = 2166136261  # FNV-1a; keys are the control plane's, not a peer's
    cdef size_t i
    for i in range(length):
        mixed = (mixed ^ <uint8_t>key[i]) * 16777619
    return mixed % GROUP_CHAINS


cdef Group *group_find(Loop *loop, const char *key, size_t length) noexcept nogil:
    cdef Group *found = loop.groups.chains[group_chain(key, length)]
    while found != NULL and not (
        found.key.length == length and memcmp(buffer_start(&found.key), key, length) == 0
    ):
        found = found.chained
    return found


cdef Group *group_new(
    Pod *pod, const char *key, size_t length, char *source, char *expected, const Address *address
) noexcept nogil:
    """Takes `source` and `expected`."""
    cdef Group *self = <Group *>make(sizeof(Group))
    cdef Group **chain = &pod.loop.groups.chains[group_chain(key, length)]
    self.loop, self.pod = pod.loop, pod
    if buffer_append(&self.key, key, length) != 0:
        die(b"out of memory")
    self.source, self.expected, self.address = source, expected, address[0]
    self.serve.run, self.serve.owner = group_serve, self
    self.chained = chain[0]
    chain[0] = self
    return self


cdef void group_dispose(void *of) noexcept nogil:
    cdef Group *self = <Group *>of
    buffer_free(&self.key)
    free(self.source)
    free(self.expected)
    free(self)


cdef void group_discard_if_empty(Group *self) noexcept nogil:
    cdef Group **at
    if self.gone or self.tunnels != NULL or self.first != NULL or self.dial != NULL or self.fresh != NULL:
        return
    self.gone = True
    task_cancel(&self.serve)
    at = &self.loop.groups.chains[group_chain(<const char *>buffer_start(&self.key), self.key.length)]
    while at[0] != self:
        at = &at[0].chained
    at[0] = self.chained
    bury(self.loop, &self.corpse, group_dispose, self)


cdef void groups_free(Groups *self) noexcept nogil:
    """Nothing is left in them but themselves."""
    cdef int i
    cdef Group *group
    for i in range(GROUP_CHAINS):
        while self.chains[i] != NULL:
            group = self.chains[i]
            self.chains[i] = group.chained
            group_dispose(group)


cdef void group_wake(Group *self) noexcept nogil:
    if not self.gone:
        turn_task(self.loop, &self.pod.turn, &self.serve)


# Who waits


cdef void group_enter(Group *self, Connection *connection) noexcept nogil:
    """connection_assigned or connection_fail is called for it, never from here; until then it may leave."""
    connection.group = self
    connection.before, connection.behind = self.last, NULL
    if self.last != NULL:
        self.last.behind = connection
    else:
        self.first = connection
    self.last = connection
    group_wake(self)


cdef void group_leave(Connection *connection) noexcept nogil:
    cdef Group *self = connection.group
    if self == NULL:
        return
    connection.group = NULL
    if connection.before != NULL:
        connection.before.behind = connection.behind
    else:
        self.first = connection.behind
    if connection.behind != NULL:
        connection.behind.before = connection.before
    else:
        self.last = connection.before
    connection.before = connection.behind = NULL
    group_wake(self)


cdef void group_fail(Group *self, int reason, const char *detail) noexcept nogil:
    """Nobody who waits will get a tunnel."""
    self.fruitless = 0
    while self.first != NULL:
        connection_fail(self.first, reason, detail)  # it leaves
    group_discard_if_empty(self)


# Tunnels for them


cdef Tunnel *group_least(Group *self) noexcept nogil:
    """The least busy one with room."""
    cdef Tunnel *tunnel = self.tunnels
    cdef Tunnel *least = NULL
    cdef size_t backlog, smallest = 0
    while tunnel != NULL:
        if tunnel_vacancies(tunnel) > 0:
            backlog = tunnel_backlog(tunnel)
            if least == NULL or backlog < smallest:
                least, smallest = tunnel, backlog
            if smallest == 0:  # their sum is not looked for in every tunnel of thousands of connections
                break
        tunnel = tunnel.following
    return least


cdef Tunnel *group_pick(Group *self) noexcept nogil:
    """One with room that is not busy; when there may be no further one, the least busy with room."""
    cdef Limits *limits = &self.loop.shared.limits
    cdef Tunnel *least = group_least(self)
    cdef Tunnel *tunnel = self.tunnels
    cdef int64_t usable = 0
    if least == NULL or tunnel_backlog(least) < limits.busy_backlog:
        return least
    while tunnel != NULL:
        usable += not tunnel_retired(tunnel)
        tunnel = tunnel.following
    return least if usable >= limits.tunnels_per_key else NULL


cdef void group_assign(Group *self, Tunnel *tunnel) noexcept nogil:
    """To the first who waits."""
    cdef Connection *connection = self.first
    group_leave(connection)
    self.fruitless = 0
    timer_stop(&tunnel.idle)
    connection_assigned(connection, tunnel)


cdef void group_give_up(Group *self) noexcept nogil:
    """The peer permits no streams, or goes away before the first: it would be dialled for ever."""
    cdef Tunnel *tunnel = self.tunnels
    while tunnel != NULL:
        if tunnel_idle(tunnel):
            tunnel_retire(tunnel)
        tunnel = tunnel.following
    group_fail(self, TUNNEL_REFUSED, b"the peer accepts tunnels and takes no stream in any of them")


cdef void group_serve(void *of) noexcept nogil:
    """Give tunnels to those who wait, in their order; dial when there is none to give."""
    cdef Group *self = <Group *>of
    cdef Tunnel *tunnel
    if self.gone:
        return
    while self.first != NULL:
        tunnel = group_pick(self)
        if tunnel == NULL:
            if self.dial != NULL or self.fresh != NULL:
                return
            if self.fruitless < self.loop.shared.limits.attempts:
                self.fruitless += 1
                group_connect(self)
                return
            group_give_up(self)
            break
        group_assign(self, tunnel)
    tunnel = self.tunnels
    while tunnel != NULL:
        if tunnel_idle(tunnel) and tunnel.idle.list == NULL:
            timer_start(self.loop, &tunnel.idle, IDLE, tunnel_end_gracefully, tunnel)
        tunnel = tunnel.following
    group_discard_if_empty(self)


cdef void group_connect(Group *self) noexcept nogil:
    cdef Loop *loop = self.loop
    cdef Contexts *contexts = self.pod.contexts
    cdef char why[400]
    cdef int fd
    if contexts == NULL or strcmp(contexts.identity, self.source) != 0:
        snprintf(why, sizeof(why), b"no certificate of %s", self.source)
        group_fail(self, NO_CERTIFICATE, why)
        return
    fd = stock_take(self.pod, self.address.any.sa_family)
    if fd < 0:
        snprintf(why, sizeof(why), b"no socket in the pod's netns: %s", error_text(errno))
        group_failed(self, CONNECT_FAILED, why)
        return
    set_option(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, loop.shared.limits.socket_backlog)
    self.dial = dial(loop, fd, &self.address, b"tunnel", group_dialled, self)
    if not self.dial.connecting:
        group_dialled(self)


cdef void group_dialled(void *of) noexcept nogil:
    cdef Group *self = <Group *>of
    cdef Socket *socket = self.dial
    cdef Contexts *contexts = self.pod.contexts
    cdef char why[200]
    self.dial = NULL
    if socket.error:
        dial_error(socket, why, sizeof(why))
        socket_abort(socket)
        group_failed(self, CONNECT_TIMEOUT if socket.error == ETIMEDOUT else CONNECT_FAILED, why)
        return
    if contexts == NULL or strcmp(contexts.identity, self.source) != 0:
        socket_abort(socket)
        group_failed(self, NO_CERTIFICATE, b"the certificate was renewed meanwhile")
        return
    self.fresh = tunnel_new(self.loop, socket, self.pod, self, contexts.client, &self.address)
    if self.fresh == NULL:
        group_failed(self, INTERNAL, b"out of memory")


cdef void group_failed(Group *self, int reason, const char *detail) noexcept nogil:
    """No further tunnel: make do with a busy one, or tell everybody."""
    cdef Tunnel *least
    while self.first != NULL:
        least = group_least(self)
        if least == NULL:
            break
        group_assign(self, least)
    group_fail(self, reason, detail)


# Of its tunnels


cdef void group_ready(Group *self, Tunnel *tunnel) noexcept nogil:
    self.fresh = NULL
    tunnel.following = self.tunnels
    if self.tunnels != NULL:
        self.tunnels.previous = tunnel
    self.tunnels = tunnel
    group_wake(self)


cdef void group_freed(Group *self, Tunnel *tunnel) noexcept nogil:
    group_wake(self)


cdef void group_over(Group *self, Tunnel *tunnel, int reason, const char *detail) noexcept nogil:
    if tunnel == self.fresh:
        self.fresh = NULL
        group_failed(self, reason, detail)
    elif tunnel == self.tunnels or tunnel.previous != NULL:
        if tunnel.previous != NULL:
            tunnel.previous.following = tunnel.following
        else:
            self.tunnels = tunnel.following
        if tunnel.following != NULL:
            tunnel.following.previous = tunnel.previous
    group_wake(self)
    group_discard_if_empty(self)


# Of the pod


cdef void group_stop_dialling(Group *self, int reason, const char *detail) noexcept nogil:
    cdef Tunnel *fresh = self.fresh
    if self.dial != NULL:
        socket_abort(self.dial)
        self.dial = NULL
    if fresh != NULL:
        self.fresh = NULL
        tunnel_lose(fresh, reason, detail)


cdef void group_retire(Group *self) noexcept nogil:
    """The pod has a new certificate: new connections prove the new one."""
    cdef Tunnel *tunnel = self.tunnels
    while tunnel != NULL:
        tunnel_retire(tunnel)
        tunnel = tunnel.following
    group_stop_dialling(self, NO_CERTIFICATE, b"the certificate was renewed meanwhile")
    group_wake(self)


cdef void group_drop(Group *self, int reason, const char *detail) noexcept nogil:
    group_stop_dialling(self, reason, detail)
    group_fail(self, reason, detail)
    while self.tunnels != NULL:
        tunnel_lose(self.tunnels, reason, detail)
    group_discard_if_empty(self)


cdef void groups_of(Pod *pod, bint drop, int reason, const char *detail) noexcept nogil:
    """Drop or retire every group of the pod."""
    cdef int i
    cdef Group *group
    cdef Group *after
    for i in range(GROUP_CHAINS):
        group = pod.loop.groups.chains[i]
        while group != NULL:
            after = group.chained
            if group.pod == pod:
                if drop:
                    group_drop(group, reason, detail)
                else:
                    group_retire(group)
            group = after

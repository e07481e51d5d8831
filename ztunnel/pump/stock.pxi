# Sockets of a pod made ahead: to enter its network namespace costs as much as to make some, so who comes often makes as
# many again each time.
#
# They are a few, of one visit, and a second old at most: closed when nobody has taken them by then, when the pod's listeners
# are, and before the pod's next life, which may be in another namespace. No namespace outlives its pod for their sake.
# Whatever the kernel asks about a socket of the agent it asks when that connects: nothing depends on when it was made.

cdef enum:
    STOCK = 8                # of a pod, a thread and a family


cdef struct Stock:
    # Part of its pod. The descriptors are owned, and tuned; they are counted as others are.
    Loop *loop
    int family
    int fds[8]
    int count
    int made                 # at the last visit, if that was not long ago
    Timer stale              # since then


cdef int stock_take(Pod *pod, int family) noexcept nogil:
    """A non-blocking TCP socket in the pod's netns, tuned, for the caller to close; -1 with errno."""
    cdef Stock *self = &pod.stocks[family == AF_INET6]
    if self.count == 0 and stock_make(self, pod) == 0:
        return -1
    self.count -= 1
    atomic_add(&self.loop.shared.descriptors, -1, RELAXED)
    return self.fds[self.count]


cdef int stock_make(Stock *self, Pod *pod) noexcept nogil:
    """How many; 0: none, with errno. One only of a pod that does not listen any more, or when descriptors are scarce."""
    cdef Loop *loop = self.loop
    cdef Shared *shared = loop.shared
    cdef bint ahead = pod.listening and atomic_get(&shared.descriptors, RELAXED) < shared.limits.descriptors // 2
    cdef int wanted = min(max(2 * self.made, 1), <int>STOCK) if ahead else 1
    cdef int i
    self.count = netns_sockets(pod.netns, <int>loop.home, loop.home_inode, self.family, self.fds, wanted)
    for i in range(self.count):
        tune(self.fds[i])
    atomic_add(&shared.descriptors, self.count, RELAXED)
    self.made = self.count
    if pod.listening and self.count:
        timer_start(loop, &self.stale, STALE, stock_clear, self)
    return self.count


cdef void stock_clear(void *of) noexcept nogil:
    """Idempotent."""
    cdef Stock *self = <Stock *>of
    timer_stop(&self.stale)
    atomic_add(&self.loop.shared.descriptors, -self.count, RELAXED)
    while self.count:
        self.count -= 1
        close_(self.fds[self.count])
    self.made = 0

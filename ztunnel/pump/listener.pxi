# Listeners of a pod and their accept loops.

cdef enum Door:
    OUTBOUND4
    OUTBOUND6
    PLAINTEXT4
    PLAINTEXT6
    TUNNEL4
    TUNNEL6
    DOORS

cdef enum:
    BURST = 64               # connections accepted at once

cdef double CROWD = 100e-6   # seconds: who comes so soon after another one does not come alone


cdef struct Listener:
    # Part of its pod. `fd` is owned, -1: none.
    Pod *pod
    int fd
    int watch
    int door
    double accepted          # monotonic; when somebody was
    int failed               # connections since then that were gone already
    Timer pause
    Task accept


cdef void listener_start(Listener *self) noexcept nogil:
    """Not edge by edge: accept(2) that finds nobody costs as much as one that finds somebody, and those who were not
    accepted are another event."""
    if self.fd < 0 or self.watch >= 0:
        return
    self.accept.run, self.accept.owner = listener_accept, self
    self.watch = loop_watch(self.pod.loop, self.fd, EPOLLIN, listener_ready, self)
    if self.watch < 0:
        listener_rest(self, errno)


cdef void listener_pause(Listener *self) noexcept nogil:
    """Nobody is accepted until it is started again; idempotent. Connections wait in the backlog."""
    timer_stop(&self.pause)
    task_cancel(&self.accept)
    loop_unwatch(self.pod.loop, self.watch, self.fd)
    self.watch = -1


cdef void listener_close(Listener *self) noexcept nogil:
    """Idempotent. Connections in the backlog are reset by the kernel, unless another process has the socket too: hence
    no shutdown(), which would end it for everybody."""
    listener_pause(self)
    if self.fd >= 0:
        close_(self.fd)
        self.fd = -1


cdef void listener_ready(void *of, uint32_t events) noexcept nogil:
    cdef Listener *self = <Listener *>of
    turn_task(self.pod.loop, &self.pod.turn, &self.accept)


cdef void listener_resume(void *of) noexcept nogil:
    listener_start(<Listener *>of)


cdef void listener_wait(Listener *self, Span span) noexcept nogil:
    """Nobody is accepted for a while."""
    listener_pause(self)
    timer_start(self.pod.loop, &self.pause, span, listener_resume, self)


cdef void listener_rest(Listener *self, int code) noexcept nogil:
    cdef char text[160]
    snprintf(text, sizeof(text), b"cannot accept: %s; trying again in %g s", error_text(code),
             self.pod.loop.timers[<int>PAUSE].seconds)
    fact_log(self.pod.loop, text)
    listener_wait(self, PAUSE)


cdef inline bint listener_captures(const Listener *self) noexcept nogil:
    return self.door == OUTBOUND4 or self.door == OUTBOUND6


cdef bint listener_must_wait(Listener *self) noexcept nogil:
    """The pod's own connections come faster than they are decided, or than it may open them. Nobody need be refused: who
    waits in the backlog has time."""
    return listener_captures(self) and inquiry_waits(self.pod)


cdef void listener_accept(void *of) noexcept nogil:
    cdef Listener *self = <Listener *>of
    cdef Loop *loop = self.pod.loop
    cdef Address peer
    cdef socklen_t size
    cdef int fd, i
    if loop_unheard(loop):
        listener_wait(self, PAUSE)
        return
    for i in range(BURST if loop.now - self.accepted < CROWD else 1):
        if self.watch < 0:  # it was closed or paused meanwhile
            return
        if listener_must_wait(self):
            listener_wait(self, REFILL)
            return
        size = sizeof(Address)
        fd = accept4(self.fd, &peer.any, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd >= 0:
            self.accepted, self.failed = loop.now, 0
            listener_accepted(self, fd, &peer)
        elif errno == EAGAIN:
            return
        elif errno == EMFILE or errno == ENFILE or errno == ENOBUFS or errno == ENOMEM:
            listener_rest(self, errno)
            return
        elif errno == EINVAL:  # it does not listen any more: somebody has ended it from outside
            listener_pause(self)  # Python knows the descriptor by its number and says when to close it
            fact_deaf(self.pod)
            return
        else:  # the peer was faster (ECONNABORTED and what else accept(2) lists)
            self.failed += 1
            if self.failed == BURST:
                self.failed = 0
                listener_rest(self, errno)


cdef void listener_accepted(Listener *self, int fd, const Address *peer) noexcept nogil:
    """Takes `fd`."""
    cdef Pod *pod = self.pod
    cdef Address local
    cdef socklen_t size = sizeof(Address)
    cdef bint captured = listener_captures(self)
    cdef bint known
    cdef Kind kind
    cdef Loop *to
    cdef char why[160]
    if getsockname(fd, &local.any, &size) != 0:
        close_(fd)
        return
    if self.door == TUNNEL4 or self.door == TUNNEL6:
        server_accept(pod, fd, peer, &local)
        return
    if captured:
        kind_captured(&kind, pod, peer, &local)
    else:
        kind_plaintext(&kind, pod, peer, &local)
    known = standing_find(pod, &kind) != NULL
    if captured and not known:
        inquiry_captured(pod)
    if pod_excess(pod, why, sizeof(why)) or not captured and not known and loop_excess(pod, peer, why, sizeof(why)):
        count_refused(pod.loop, LIMIT, why)
        close_(fd)  # RST: inherited from the listener
        return
    to = spread_connection(pod)
    if to == pod.loop:
        connection_accept(pod, fd, captured, peer, &local, &kind)
    else:
        spread_send(pod, to, fd, captured, peer, &local, &kind)

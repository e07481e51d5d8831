# Whose turn it is. Pods share a thread's time, not the number of things that they have to do.
#
# Deficit round robin over pods, in the order of fq_codel (RFC 8290 4.1): who had nothing to do comes before those who are
# busy, and who has used up its quantum waits until the others had theirs. Time is what is shared, because everything
# costs it: bytes, handshakes, connections.

cdef double QUANTUM = 200e-6  # seconds that a pod may use while others wait
cdef double BREATH = 50e-6    # seconds between two looks at who has come
cdef double DEBT = 50 * QUANTUM  # a pod is charged no more at once: a thread that was stopped in its turn took the time itself


cdef struct Turn:
    # Part of its pod.
    Turn *previous
    Turn *following
    Turns *list              # where it waits; NULL: there is nothing to do
    Tasks tasks              # reading and relaying
    Tasks flushes            # framing, encrypting, sending: when all streams of a tunnel have said what they have to
    double credit            # seconds


cdef struct Turns:
    Turn *first
    Turn *last


cdef inline void turn_leave(Turn *self) noexcept nogil:
    if self.list == NULL:
        return
    if self.previous != NULL:
        self.previous.following = self.following
    else:
        self.list.first = self.following
    if self.following != NULL:
        self.following.previous = self.previous
    else:
        self.list.last = self.previous
    self.previous = self.following = NULL
    self.list = NULL


cdef inline void turn_enter(Turn *self, Turns *list) noexcept nogil:
    """As the last."""
    turn_leave(self)
    self.list = list
    self.previous = list.last
    if list.last != NULL:
        list.last.following = self
    else:
        list.first = self
    list.last = self


cdef inline void turn_wake(Loop *loop, Turn *self) noexcept nogil:
    if self.list == NULL:
        self.credit = QUANTUM
        turn_enter(self, &loop.sparse)


cdef inline void turn_task(Loop *loop, Turn *self, Task *task) noexcept nogil:
    task_queue(&self.tasks, task)
    turn_wake(loop, self)


cdef inline void turn_flush(Loop *loop, Turn *self, Task *task) noexcept nogil:
    task_queue(&self.flushes, task)
    turn_wake(loop, self)


cdef inline bint turns_waiting(const Loop *loop) noexcept nogil:
    return loop.sparse.first != NULL or loop.busy.first != NULL


cdef double turn_run(Loop *loop, Turn *self, double now, double until) noexcept nogil:
    """Its tasks; then, if these are done or the quantum is used up, its flushes: what many streams of a tunnel have to say
    leaves in one record and one write. The time after it."""
    cdef double began = now
    now = tasks_run(&self.tasks, now, min(until, now + self.credit))
    if self.tasks.first == NULL or self.credit <= now - began:
        now = tasks_run(&self.flushes, now, now + QUANTUM)
    self.credit = max(self.credit - (now - began), -DEBT)
    if self.tasks.first != NULL or self.flushes.first != NULL:
        return now
    if self.list == &loop.sparse and loop.busy.first != NULL:
        turn_enter(self, &loop.busy)  # should it come back at once, it does not overtake those who wait
    else:
        turn_leave(self)
    return now


cdef void turns_run(Loop *loop) noexcept nogil:
    """What there is to do, until it is time to look who has come."""
    cdef Turn *turn
    cdef double now = clock_now()
    cdef double until = now + BREATH
    while now < until and turns_waiting(loop):
        turn = loop.sparse.first if loop.sparse.first != NULL else loop.busy.first
        if turn.credit <= 0:  # what it drew beyond its quantum is missing from the next one
            turn.credit += QUANTUM
            turn_enter(turn, &loop.busy)
        else:
            now = turn_run(loop, turn, now, until)

# Deadlines and postponed work of one thread.
#
# All timers of one kind last equally long, so each kind is a list in the order of its ends: starting and stopping costs
# nothing, and the next one due is at the head of a list.

cdef enum Span:
    DECISION      # between a fact and its order
    CONNECT
    HANDSHAKE
    RESPONSE      # CONNECT sent until its response
    GRACE         # between the GOAWAY that announces and the final one
    PING
    IDLE          # a pooled tunnel without streams
    LINGER        # last words are read by the peer
    PAUSE         # without accepting, when descriptors or memory run out
    REFILL        # without accepting, when a pod's bucket is empty
    REPORT        # of facts that nobody waits for
    LOOK          # at a socket's second queue
    ANSWER        # to a CONNECT that came with bytes, without any in return
    STALE         # sockets made ahead that nobody takes
    PATIENCE      # with a decision, until the socket that waits for it is watched
    TELL          # of a connection under a standing order that lives on
    TALLY         # of those that are over
    SPANS


cdef struct Timer:
    Timer *previous
    Timer *following
    Timers *list             # where it runs; NULL: it does not
    double due
    void (*fire)(void *) noexcept nogil
    void *owner


cdef struct Timers:
    Timer *first
    Timer *last
    double seconds


cdef inline void timer_stop(Timer *self) noexcept nogil:
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


cdef inline void timer_start(
    Loop *loop, Timer *self, Span span, void (*fire)(void *) noexcept nogil, void *owner
) noexcept nogil:
    """One that runs already begins anew."""
    cdef Timers *list = &loop.timers[<int>span]
    timer_stop(self)
    self.due = loop.now + list.seconds
    self.fire, self.owner, self.list = fire, owner, list
    self.previous = list.last
    if list.last != NULL:
        list.last.following = self
    else:
        list.first = self
    list.last = self


cdef struct Task:
    # Work of this turn or the next, done once however often it was asked for.
    Task *previous
    Task *following
    Tasks *queue             # where it waits; NULL: it does not
    void (*run)(void *) noexcept nogil
    void *owner


cdef struct Tasks:
    Task *first
    Task *last


cdef inline void task_cancel(Task *self) noexcept nogil:
    if self.queue == NULL:
        return
    if self.previous != NULL:
        self.previous.following = self.following
    else:
        self.queue.first = self.following
    if self.following != NULL:
        self.following.previous = self.previous
    else:
        self.queue.last = self.previous
    self.previous = self.following = NULL
    self.queue = NULL


cdef inline void task_queue(Tasks *queue, Task *self) noexcept nogil:
    if self.queue != NULL:
        return
    self.queue = queue
    self.previous = queue.last
    if queue.last != NULL:
        queue.last.following = self
    else:
        queue.first = self
    queue.last = self


cdef inline double tasks_run(Tasks *queue, double now, double until) noexcept nogil:
    """Those that wait now, the first one and as many others as begin before `until`; those that they queue wait for the
    next time, whichever of them is cancelled meanwhile. The time after the last."""
    cdef Task mark
    cdef Task *task
    memset(&mark, 0, sizeof(mark))
    task_queue(queue, &mark)
    while queue.first != &mark:
        task = queue.first
        task_cancel(task)
        task.run(task.owner)
        now = clock_now()
        if now >= until:  # not before the first: what a pod has left of its quantum may be too little to add to a time
            break
    task_cancel(&mark)
    return now

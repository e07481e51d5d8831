# One thread with one epoll, and what all threads of an engine share.
#
# A round: readiness of sockets, orders, timers, then the pods' turns: tasks (reading, relaying), then flushes (framing,
# encrypting, sending), so that what many streams of a tunnel have to say leaves in one record and one write.

cdef enum:
    EVENTS = 128             # of one round
    CIPHER = 128 << 10       # read from a tunnel's socket at once
    PLAIN = 144 << 10        # the same decrypted, and a record's room
    CHUNK = 128 << 10        # read from an application's socket at once; a message of 64 KiB comes short: that was all
    LOG_LINES = 10           # per reason and second
    CALM_FACTS = 256 << 10   # bytes


cdef struct Limits:
    # See ztunnel.pump.limits.
    long descriptors
    long connections
    long connections_per_pod
    long tunnels_per_pod
    long tunnels_per_peer
    long handshakes_per_pod
    long handshakes_per_peer
    long untold_per_peer
    long untold_captured
    core.Bucket captures
    core.Bucket inbound
    core.Bucket inbound_of_peer
    core.Bucket handshakes
    core.Bucket handshakes_of_peer
    double ping_timeout
    long streams_accepted
    long streams_opened
    long tunnels_per_key
    size_t busy_backlog
    long attempts
    double awake
    int socket_backlog
    int32_t stream_window
    int32_t stream_window_max
    int64_t window_budget
    int64_t window_budget_per_pod
    int64_t window_budget_of_all
    int64_t buffered_per_pod
    int64_t buffered
    size_t stream_buffer
    double seconds[17]       # per Span
    core.Config server       # of HTTP/2 sessions
    core.Config client


cdef struct Shared:
    # What the threads of one engine have in common. Made and freed by the Pump, which outlives its threads; numbers
    # that several write are atomic.
    Limits limits
    int status[128]          # HTTP answer per reason
    long refused[128]        # turned away before they had an id
    long connections
    long tunnels
    long descriptors         # of sockets, and of those that connections are still going to dial
    long buffered            # bytes that tunnels hold
    long growth              # of their windows
    int64_t threads
    bint accelerated         # sockets of applications may be in a sockhash
    Loop **loops             # all `threads` of them
    Maps maps
    Inquiries inquiries
    uint64_t generation      # atomic; of standing orders: those of another one have lapsed
    Mail facts


cdef struct Watch:
    # An entry of epoll. Its data there is index and generation: an event that was on its way when the entry was given
    # up, or given to another, finds another generation and is dropped.
    uint32_t generation
    int vacant               # the next free entry, while this one is free
    void (*ready)(void *, uint32_t) noexcept nogil
    void *owner


cdef struct Loop:
    # Owned by the Pump; everything below by the thread, which alone touches it while it runs, but for `orders`,
    # `asked`, `answered` and `stopped`. Who wants to know whether it lives reads `steps` and polls `epoll`.
    Shared *shared
    int64_t index
    pthread_t thread
    bint running
    int epoll
    Mail orders
    int64_t home             # file descriptor of the agent's own network namespace
    uint64_t home_inode
    double now
    uint64_t steps           # atomic; into rounds and out of them: odd while it is in one
    Watch *watches
    int watch_count
    int vacant
    Timers timers[17]
    Turns sparse             # pods that have something to do: those that had nothing before
    Turns busy               # and those that always have
    Corpse *dead
    Batch facts
    bint urgent              # somebody waits for what one of them will be answered with
    size_t calm              # bytes of them that nobody waits for at all
    Timer report
    Buffer taken             # orders being carried out
    Batch posts              # an order to another thread, being written
    Load load
    Vigil vigil
    uint64_t serial          # of the last connection
    Lots lots
    Connections connections
    Pod *pods
    Groups groups
    Peers peers
    Allowances allowances
    uint8_t *cipher
    uint8_t *plain
    uint8_t *chunk
    const uint8_t *feed      # ciphertext that a session may take now
    size_t feed_left
    double logged_since[128]
    int logged_lines[128]
    pthread_mutex_t lock     # of the four below
    pthread_cond_t answer
    uint64_t asked
    uint64_t answered
    uint64_t missed          # by Python: which answer did not come in time
    bint stopped


cdef double clock_now() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef int loop_watch(
    Loop *self, int fd, uint32_t events, void (*ready)(void *, uint32_t) noexcept nogil, void *owner
) noexcept nogil:
    """The entry's index; -1: the kernel has no room for it."""
    cdef epoll_event event
    cdef Watch *watch
    cdef int index, count
    if self.vacant < 0:
        count = max(self.watch_count * 2, 64)
        self.watches = <Watch *>realloc(self.watches, count * sizeof(Watch))
        if self.watches == NULL:
            die(b"out of memory")
        for index in range(count - 1, self.watch_count - 1, -1):
            memset(&self.watches[index], 0, sizeof(Watch))
            self.watches[index].vacant = self.vacant
            self.vacant = index
        self.watch_count = count
    index = self.vacant
    watch = &self.watches[index]
    event.events = events
    event.data.u64 = <uint64_t>watch.generation << 32 | <uint64_t>index
    if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event) != 0:
        return -1
    self.vacant = watch.vacant
    watch.ready, watch.owner = ready, owner
    return index


cdef int loop_watch_more(Loop *self, int index, int fd, uint32_t events) noexcept nogil:
    """0, or -1. What is so already is an event."""
    cdef epoll_event event
    event.events = events
    event.data.u64 = <uint64_t>self.watches[index].generation << 32 | <uint64_t>index
    return epoll_ctl(self.epoll, EPOLL_CTL_MOD, fd, &event)


cdef void loop_unwatch(Loop *self, int index, int fd) noexcept nogil:
    """Of a descriptor that stays open, here or in another process."""
    if index >= 0:
        epoll_ctl(self.epoll, EPOLL_CTL_DEL, fd, NULL)
    loop_forget(self, index)


cdef void loop_forget(Loop *self, int index) noexcept nogil:
    """Of a descriptor that is closed now."""
    cdef Watch *watch
    if index < 0:
        return
    watch = &self.watches[index]
    watch.generation += 1
    watch.ready, watch.owner = NULL, NULL
    watch.vacant = self.vacant
    self.vacant = index


cdef void bury(Loop *self, Corpse *corpse, void (*dispose)(void *) noexcept nogil, void *of) noexcept nogil:
    """`of` is freed by `dispose` when the round is over. Once."""
    if corpse.of != NULL:
        return
    corpse.of, corpse.dispose = of, dispose
    corpse.following = self.dead
    self.dead = corpse


cdef void bury_all(Loop *self) noexcept nogil:
    cdef Corpse *corpse
    while self.dead != NULL:
        corpse = self.dead
        self.dead = corpse.following
        corpse.dispose(corpse.of)


cdef void count_refused(Loop *self, int reason, const char *text) noexcept nogil:
    """A connection was turned away before it had an id. Logged, but a flood of them must not flood the disk."""
    atomic_add(&self.shared.refused[reason], 1, RELAXED)
    if self.now - self.logged_since[reason] >= 1.0:
        self.logged_since[reason] = self.now
        self.logged_lines[reason] = 0
    self.logged_lines[reason] += 1
    if self.logged_lines[reason] <= LOG_LINES:
        fact_turned_away(self, reason, text)


cdef bint loop_unheard(Loop *self) noexcept nogil:
    """Python is far behind."""
    return self.facts.records.length + self.shared.facts.waiting.length > MOST_FACTS


cdef uint64_t loop_takes(Loop *self) noexcept nogil:
    """How often Python has taken facts."""
    return atomic_get64(&self.shared.facts.takes, RELAXED)


cdef bint loop_excess(Pod *pod, const Address *peer, char *why, size_t size) noexcept nogil:
    """One more connection of this peer to the pod, plaintext or a request, would be too much; and why."""
    cdef const char *text = inquiry_refuse(pod, peer)
    cdef char address[ADDRESS_TEXT]
    if text == NULL:
        return False
    address_text(peer, address)
    snprintf(why, size, b"%s: %s %s", pod.name, address, text)
    return True


cdef void loop_timers(Loop *self) noexcept nogil:
    cdef int span
    cdef Timer *timer
    for span in range(SPANS):
        while True:
            timer = self.timers[span].first
            if timer == NULL or timer.due > self.now:
                break
            timer_stop(timer)
            timer.fire(timer.owner)


cdef int loop_patience(Loop *self) noexcept nogil:
    """Milliseconds until there is something to do; -1: whenever somebody comes."""
    cdef double due = -1, left
    cdef int span
    cdef Timer *timer
    if turns_waiting(self):
        return 0
    for span in range(SPANS):
        timer = self.timers[span].first
        if timer != NULL and (due < 0 or timer.due < due):
            due = timer.due
    if due < 0:
        return -1
    left = (due - self.now) * 1000
    return 0 if left <= 0 else <int>min(left + 1, 60_000.0)


cdef void loop_orders(void *of, uint32_t events) noexcept nogil:
    cdef Loop *self = <Loop *>of
    cdef Cursor rest, record
    cdef uint64_t ticket, one = 1
    pthread_mutex_lock(&self.lock)
    ticket = self.asked
    pthread_mutex_unlock(&self.lock)
    mail_take(&self.orders, &self.taken)
    rest.at = buffer_start(&self.taken)
    rest.end = rest.at + self.taken.length
    while cursor_record(&rest, &record):
        carry_out(self, &record)
    buffer_drop(&self.taken, self.taken.length)
    if ticket != self.answered:
        loop_report_now(self)  # what came of them is known before they are done
    pthread_mutex_lock(&self.lock)
    self.answered = ticket
    pthread_cond_broadcast(&self.answer)
    if self.asked != ticket:  # who asked since then has rung, too, and mail_take may have silenced that
        write_(self.orders.bell, &one, sizeof(one))
    pthread_mutex_unlock(&self.lock)


cdef void loop_post(Loop *self, Loop *to) noexcept nogil:
    batch_end(&self.posts)
    mail_send(&to.orders, &self.posts)


cdef void loop_report_now(void *of) noexcept nogil:
    cdef Loop *self = <Loop *>of
    self.urgent = False
    self.calm = 0
    timer_stop(&self.report)
    mail_send(&self.shared.facts, &self.facts)


cdef void loop_report(Loop *self) noexcept nogil:
    """At once if an order is awaited; what is only to be known comes a little later, many together, and what is only to
    be counted later still."""
    if self.urgent or self.calm > CALM_FACTS:
        loop_report_now(self)
    elif self.facts.records.length > self.calm:
        if self.report.list != &self.timers[<int>REPORT]:
            timer_start(self, &self.report, REPORT, loop_report_now, self)
    elif self.calm and self.report.list == NULL:
        timer_start(self, &self.report, TALLY, loop_report_now, self)


cdef void loop_round(Loop *self, epoll_event *events, int count) noexcept nogil:
    cdef int i
    cdef uint32_t index
    cdef Watch *watch
    for i in range(count):
        index = <uint32_t>events[i].data.u64
        watch = &self.watches[index]
        if watch.generation == <uint32_t>(events[i].data.u64 >> 32) and watch.ready != NULL:
            watch.ready(watch.owner, events[i].events)
    loop_timers(self)
    turns_run(self)
    loop_report(self)
    bury_all(self)


cdef inline void loop_step(Loop *self) noexcept nogil:
    atomic_set64(&self.steps, self.steps + 1, RELAXED)


cdef bint loop_has_work(Loop *self, uint64_t steps) noexcept nogil:
    """For other threads: it is in a round, or something has come that it should wake up for. It is not woken to be asked."""
    cdef pollfd waits
    waits.fd, waits.events, waits.revents = self.epoll, POLLIN, 0
    return steps % 2 or poll(&waits, 1, 0) > 0


cdef void *loop_run(void *of) noexcept nogil:
    cdef Loop *self = <Loop *>of
    cdef epoll_event events[EVENTS]
    cdef int count
    cdef int i
    while not self.stopped:
        count = vigil_wait(&self.vigil, self.epoll, events, loop_patience(self), &self.now)
        loop_step(self)
        load_measure(&self.load, self.now, self.vigil.awake)
        if count < 0:
            if errno != EINTR:
                die(b"epoll_wait failed")
            count = 0
        loop_round(self, events, count)
        loop_step(self)
    loop_report_now(self)
    return NULL


cdef Loop *loop_new(Shared *shared, int64_t index, int orders_bell) except NULL:
    """OSError. The thread does not run yet."""
    cdef Loop *self = <Loop *>make(sizeof(Loop))
    cdef int span
    self.shared, self.index = shared, index
    self.vigil.most = shared.limits.awake
    self.vacant = -1
    self.orders.bell = orders_bell
    self.now = clock_now()
    for span in range(SPANS):
        self.timers[span].seconds = shared.limits.seconds[span]
    pthread_mutex_init(&self.orders.lock, NULL)
    pthread_mutex_init(&self.lock, NULL)
    pthread_cond_init(&self.answer, NULL)
    self.cipher = <uint8_t *>make(CIPHER)
    self.plain = <uint8_t *>make(PLAIN)
    self.chunk = <uint8_t *>make(CHUNK)
    self.epoll = epoll_create1(EPOLL_CLOEXEC)
    if self.epoll < 0:
        raise OSError(errno, "no epoll for the pump")
    self.home = netns_home(&self.home_inode)
    if (allowances_new(&self.allowances) != 0 or lots_new(&self.lots) != 0 or self.home < 0 or loop_watch(self, orders_bell, EPOLLIN, loop_orders, self) < 0):
        raise OSError(errno, "the pump's thread cannot be prepared")
    return self


cdef void loop_free(Loop *self) noexcept nogil:
    """After its thread has ended and its pods were dropped."""
    bury_all(self)
    if self.epoll > 0:
        close_(self.epoll)
    if self.home > 0:
        close_(<int>self.home)
    close_(self.orders.bell)
    buffer_free(&self.orders.waiting)
    buffer_free(&self.taken)
    buffer_free(&self.facts.records)
    buffer_free(&self.posts.records)
    connections_free(&self.connections)
    groups_free(&self.groups)
    peers_free(&self.peers)
    free(self.allowances.table)
    free(self.watches)
    free(self.cipher)
    free(self.plain)
    free(self.chunk)
    pthread_mutex_destroy(&self.orders.lock)
    pthread_mutex_destroy(&self.lock)
    pthread_cond_destroy(&self.answer)
    free(self)

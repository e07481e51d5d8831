# How many connections Python is asked about, or told of one by one. All threads share its time, so they count together:
# a pod, and an address, has these rates however many threads serve it.
#
# A table of fixed size, as for allowances.

cdef enum:
    INQUIRIES = 4096


cdef struct Untold:
    uint64_t takes           # of facts by Python, when `count` was counted
    uint32_t count           # connections that it was told of since


cdef struct Inquiry:
    # Of what one address opens to one pod.
    Untold untold
    core.Bucket inbound      # filled when it is first used


cdef struct Inquiries:
    # Part of Shared. `lock` is of what pods have in Common, too; nobody does anything under it but count.
    pthread_mutex_t lock
    Inquiry *table
    uint64_t seed


cdef int inquiries_new(Inquiries *self) noexcept nogil:
    pthread_mutex_init(&self.lock, NULL)
    self.table = <Inquiry *>make(INQUIRIES * sizeof(Inquiry))
    return 0 if getrandom(&self.seed, sizeof(self.seed), 0) == sizeof(self.seed) else -1


cdef void inquiries_free(Inquiries *self) noexcept nogil:
    free(self.table)
    pthread_mutex_destroy(&self.lock)


cdef inline bint untold_full(const Untold *self, uint64_t takes, long most) noexcept nogil:
    return self.takes == takes and self.count >= most


cdef bint untold_add(Untold *self, uint64_t takes, long most) noexcept nogil:
    """Python may be told of one more connection. Those that live are limited elsewhere; this is about those that are
    over before it has heard of them. `takes`: of facts, so far."""
    if untold_full(self, takes, most):
        return False
    if self.takes != takes:
        self.takes, self.count = takes, 0
    self.count += 1
    return True


cdef inline Inquiry *inquiry_of(Pod *pod, const Address *peer) noexcept nogil:
    cdef Inquiries *all_ = &pod.loop.shared.inquiries
    return &all_.table[address_key(all_.seed, pod.number, peer) % INQUIRIES]


cdef const char *inquiry_refuse(Pod *pod, const Address *peer) noexcept nogil:
    """Why Python is not asked about one more connection of this peer to the pod; NULL: it is."""
    cdef Loop *loop = pod.loop
    cdef Limits *limits = &loop.shared.limits
    cdef Inquiry *inquiry = inquiry_of(pod, peer)
    cdef const char *why = NULL
    pthread_mutex_lock(&loop.shared.inquiries.lock)
    if loop_unheard(loop) or not untold_add(&inquiry.untold, loop_takes(loop), limits.untold_per_peer):
        why = b"asks faster than the agent decides"
    elif not charge(bucket_of(&inquiry.inbound, &limits.inbound_of_peer), loop.now):
        why = b"opens too many connections in too short a time"
    elif not charge(bucket_of(&pod.common.inbound, &limits.inbound), loop.now):
        why = b"comes while others open too many connections in too short a time"
    pthread_mutex_unlock(&loop.shared.inquiries.lock)
    return why


cdef bint inquiry_waits(Pod *pod) noexcept nogil:
    """Python is not to be asked about one more of the pod's own connections now."""
    cdef Loop *loop = pod.loop
    cdef Limits *limits = &loop.shared.limits
    cdef bint waits
    pthread_mutex_lock(&loop.shared.inquiries.lock)
    waits = bucket_empty(&pod.common.captures, loop.now) or untold_full(
        &pod.common.untold, loop_takes(loop), limits.untold_captured)
    pthread_mutex_unlock(&loop.shared.inquiries.lock)
    return waits


cdef void inquiry_captured(Pod *pod) noexcept nogil:
    """Python is asked about one of them."""
    cdef Loop *loop = pod.loop
    cdef Limits *limits = &loop.shared.limits
    pthread_mutex_lock(&loop.shared.inquiries.lock)
    charge(bucket_of(&pod.common.captures, &limits.captures), loop.now)
    untold_add(&pod.common.untold, loop_takes(loop), limits.untold_captured)
    pthread_mutex_unlock(&loop.shared.inquiries.lock)


cdef bint inquiry_told(Pod *pod, bint captured, const Address *client) noexcept nogil:
    """Whether Python has time for it: to be told of one costs as much as to be asked."""
    cdef Loop *loop = pod.loop
    cdef Limits *limits = &loop.shared.limits
    cdef core.Bucket *bucket = &inquiry_of(pod, client).inbound
    cdef bint told
    if captured:
        bucket = &pod.common.captures
    pthread_mutex_lock(&loop.shared.inquiries.lock)
    told = charge(bucket_of(bucket, &limits.captures if captured else &limits.inbound_of_peer), loop.now)
    pthread_mutex_unlock(&loop.shared.inquiries.lock)
    return told

# A thread that expects the next event any moment stays awake for it.
#
# Who sleeps has to be woken. On a quiet machine that is most of a message's way: the sender interrupts a halted processor,
# which takes both of them longer than the message itself. So a thread whose sleeps are short looks again and again for a
# while before it sleeps. Before each look it lets others run (sched_yield): who waits for the processor, the application
# perhaps, is not kept from it. And it does so only while that pays: what it looks for comes promptly, within about what a
# sleep costs. A thread with nothing to do sleeps; so does one that others keep from looking in time.

cdef double SHORT = 150e-6    # a sleep that might have been spared; most of it may be the wake-up
cdef double PROMPT = 50e-6    # looking for that long costs no more than a sleep; Limits.awake is when it gives up
cdef double RETRY = 1e-3      # until the next try after one that came to nothing: twice as long each time,
cdef double RETRY_MOST = 0.5  # up to this
cdef double CROWDED = 2       # times Limits.awake: who has looked for that long was kept from it
cdef enum:
    SHORT_SLEEPS = 8          # in a row, before a try
    TRY = 16                  # the credit of a try: an event that comes promptly adds one,
    VAIN = 4                  # one that does not takes one away, and none so many;
    CREDIT = 32               # the most, and with it the try has paid


cdef struct Vigil:
    double most              # Limits.awake; 0: it always sleeps
    long credit              # above 0: it stays awake
    long sleeps              # short ones, in a row
    double retry             # seconds from the end of the last try to the next; 0: it has paid
    double not_before        # that time
    double awake             # seconds spent looking


cdef inline void vigil_slept(Vigil *self, double seconds, double now) noexcept nogil:
    self.sleeps = self.sleeps + 1 if seconds <= SHORT else 0
    if self.sleeps >= SHORT_SLEEPS and now >= self.not_before and self.most > 0:
        self.credit = TRY


cdef inline void vigil_looked(Vigil *self, double seconds, bint found, double now) noexcept nogil:
    """Whoever ran meanwhile for long needs the core: then it is over at once, as each yield may cost milliseconds."""
    self.awake += seconds
    if found and seconds <= PROMPT:
        self.credit = min(self.credit + 1, <long>CREDIT)
        if self.credit == CREDIT:
            self.retry = 0
        return
    if seconds > CROWDED * self.most:
        self.credit = 0
    else:
        self.credit -= 1 if found else VAIN
    if self.credit <= 0:
        self.sleeps = 0
        self.retry = min(max(self.retry * 2, RETRY), RETRY_MOST)
        self.not_before = now + self.retry


cdef int vigil_wait(Vigil *self, int epoll, epoll_event *events, int patience, double *now) noexcept nogil:
    """epoll_wait, and the time after it. What is there already counts neither way."""
    cdef bint awake = self.credit > 0
    cdef double began
    cdef int count = epoll_wait(epoll, events, EVENTS, 0) if awake or patience == 0 else 0
    began = now[0] = clock_now()
    if count != 0 or patience == 0:
        return count
    if awake:
        while count == 0 and now[0] - began < self.most:
            sched_yield()
            count = epoll_wait(epoll, events, EVENTS, 0)
            now[0] = clock_now()
        vigil_looked(self, now[0] - began, count > 0, now[0])
        if count != 0:
            return count
    count = epoll_wait(epoll, events, EVENTS, patience)
    now[0] = clock_now()
    if not awake:
        vigil_slept(self, now[0] - began, now[0])
    return count

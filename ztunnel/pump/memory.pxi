# Where memory comes from, and when it goes.
#
# Every struct is made by `make` and belongs to one thread. What dies in the middle of a round of the loop may still be in
# the hands of a function further up: it is marked dead there and then, and freed by `bury_all` when the round is over. So
# nothing is freed while it can be used, and whoever comes across something dead leaves it alone.


cdef void die(const char *why) noexcept nogil:
    """The agent ends, and with it every connection, each with a reset: closed, as whatever else can crash."""
    fprintf(stderr, b"pump: %s: abort\n", why)
    abort()


cdef void *make(size_t size) noexcept nogil:
    """Zeroed. Sizes of structs only; what a peer can make large is a Buffer, and that reports its failure."""
    cdef void *made = calloc(1, size)
    if made == NULL:
        die(b"out of memory")
    return made


cdef char *copy_text(const char *text, size_t length) noexcept nogil:
    """With a zero at its end; `free` it."""
    cdef char *copied = <char *>make(length + 1)
    memcpy(copied, text, length)
    return copied


cdef struct Corpse:
    Corpse *following
    void (*dispose)(void *) noexcept nogil
    void *of


cdef struct Lost:
    # Why an end of a relay, or the way to one, is gone. `reason` 0: it is not.
    int reason
    char *detail     # owned


cdef inline void lost_set(Lost *self, int reason, const char *detail) noexcept nogil:
    """The first cause stays."""
    if self.reason == 0:
        self.reason = reason
        self.detail = copy_text(detail, strlen(detail))


cdef inline void lost_free(Lost *self) noexcept nogil:
    free(self.detail)
    self.detail = NULL


# The numbers of mesh.reason that are given here.
cdef enum Reason:
    OK = 0
    NO_DESTINATION = 1
    NO_CERTIFICATE = 52
    CONNECT_FAILED = 64
    CONNECT_TIMEOUT = 65
    TLS_FAILED = 66
    PEER_IDENTITY = 67
    HTTP2_PROTOCOL = 68
    TUNNEL_LOST = 69
    TUNNEL_REFUSED = 70
    RESET_BY_PEER = 96
    DRAINED = 97
    POD_GONE = 98
    LIMIT = 99
    INTERNAL = 100
    REASONS = 128

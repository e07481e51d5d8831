# What one address may cost a thread that serves a pod before anything of it was decided.
#
# A table of fixed size: an attacker who comes again and again, or from many addresses, takes no memory. Who falls into
# the same place shares it; the hash is seeded, so that nobody can choose with whom.

cdef enum:
    ALLOWANCES = 4096
    FAILED_COSTS = 4         # more tokens than a handshake that comes to something
    KNOWN = 600              # seconds that a peer is known for having proved an identity
    MOST_FACTS = 16 << 20    # bytes of facts that Python has not taken: nobody is let in until it has


cdef struct Allowance:
    double proved            # when it last proved an identity that is welcome; 0: never
    core.Bucket handshakes   # buckets are filled when they are first used
    core.Bucket resets       # of streams, all its tunnels of this thread together


cdef struct Allowances:
    Allowance *table
    uint64_t seed


cdef int allowances_new(Allowances *self) noexcept nogil:
    self.table = <Allowance *>make(ALLOWANCES * sizeof(Allowance))
    return 0 if getrandom(&self.seed, sizeof(self.seed), 0) == sizeof(self.seed) else -1


cdef inline uint64_t mixed(uint64_t number) noexcept nogil:
    """The finaliser of MurmurHash3."""
    number = (number ^ number >> 33) * <uint64_t>0xff51afd7ed558ccd
    number = (number ^ number >> 33) * <uint64_t>0xc4ceb9fe1a85ec53
    return number ^ number >> 33


cdef uint64_t address_key(uint64_t seed, uint64_t pod, const Address *address) noexcept nogil:
    cdef uint64_t halves[2]
    cdef uint64_t key = mixed(seed ^ pod)
    if address.any.sa_family == AF_INET6:
        memcpy(halves, &address.six.sin6_addr, sizeof(halves))
        key = mixed(mixed(key ^ halves[0]) ^ halves[1])
    else:
        key = mixed(key ^ address.four.sin_addr.s_addr)
    return key


cdef inline Allowance *allowance_of(Allowances *self, uint64_t pod, const Address *address) noexcept nogil:
    return &self.table[address_key(self.seed, pod, address) % ALLOWANCES]


cdef inline core.Bucket *bucket_of(core.Bucket *self, const core.Bucket *full) noexcept nogil:
    if self.burst == 0:
        self[0] = full[0]
    return self


cdef inline bint bucket_empty(const core.Bucket *self, double now) noexcept nogil:
    """Nothing could be charged now."""
    return self.burst > 0 and self.tokens + (now - self.filled_at) * self.per_second < 1

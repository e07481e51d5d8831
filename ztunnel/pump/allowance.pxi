# What one address may cost one pod before anything of it was decided.
#
# A table of fixed size: an attacker who comes again and again, or from many addresses, takes no memory. Who falls into
# the same place shares it; the hash is seeded, so that nobody can choose with whom.

cdef enum:
    ALLOWANCES = 4096
    MOST_FACTS = 16 << 20    # bytes of facts that Python has not taken: nobody is let in until it has


cdef struct Allowance:
    uint64_t takes           # of facts by Python, when `untold` was counted
    uint32_t untold          # connections that it was told of since


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


cdef Allowance *allowance_of(Allowances *self, uint64_t pod, const Address *address) noexcept nogil:
    cdef uint64_t halves[2]
    cdef uint64_t key = mixed(self.seed ^ pod)
    if address.any.sa_family == AF_INET6:
        memcpy(halves, &address.six.sin6_addr, sizeof(halves))
        key = mixed(mixed(key ^ halves[0]) ^ halves[1])
    else:
        key = mixed(key ^ address.four.sin_addr.s_addr)
    return &self.table[key % ALLOWANCES]


cdef bint allowance_tell(Allowance *self, uint64_t takes, long most) noexcept nogil:
    """Python may be told of one more connection. Those that live are limited elsewhere; this is about those that are
    over before it has heard of them. `takes`: of facts, so far."""
    if self.takes != takes:
        self.takes, self.untold = takes, 0
    if self.untold >= most:
        return False
    self.untold += 1
    return True

# What a thread tells Python: records of the facts of ztunnel.orders, and some that the engine keeps to itself.

cdef enum Fact:
    FACT_ACCEPTED            # id, pod, meter, captured?, peer, local, kind
    FACT_OFFERED             # id, pod, meter, client, local, peer, count, fields, kind
    FACT_OPENED              # id, peer, upstream
    FACT_ENDED               # id, reason, detail
    FACT_BEGUN               # id, pod, meter, alternative, port of the client, trace, when
    FACT_PASSED              # pod, alternative, peer, port of the client, sent, received, since, until
    FACT_LAPSED              # fence
    FACT_SPENT               # pod, alternative
    FACT_DEAF                # pod
    FACT_TURNED_AWAY         # reason, text
    FACT_LOG                 # text
    FACT_WITHDRAW            # socket cookie
    FACT_POD_GONE            # pod, life
    FACT_QUIET               # a tunnel is over


cdef void fact_accepted(
    Connection *self, bint captured, const Address *peer, const Address *local, const Kind *kind
) noexcept nogil:
    cdef Batch *facts = &self.loop.facts
    self.loop.urgent = True
    batch_begin(facts, FACT_ACCEPTED)
    batch_number(facts, self.id)
    batch_number(facts, self.pod.number)
    batch_number(facts, <uint64_t>self.meter)
    batch_number(facts, captured)
    batch_address(facts, peer)
    batch_address(facts, local)
    batch_bytes(facts, kind.data, kind.length)
    batch_end(facts)


cdef void fact_offered(
    Connection *self, Tunnel *tunnel, const uint8_t *fields, size_t length, uint32_t count, const Kind *kind
) noexcept nogil:
    cdef Batch *facts = &self.loop.facts
    self.loop.urgent = True
    batch_begin(facts, FACT_OFFERED)
    batch_number(facts, self.id)
    batch_number(facts, self.pod.number)
    batch_number(facts, <uint64_t>self.meter)
    batch_address(facts, &tunnel.address)
    batch_address(facts, &tunnel.local)
    batch_text(facts, tunnel.peer)
    batch_number(facts, count)
    batch_bytes(facts, fields, length)
    batch_bytes(facts, kind.data, kind.length)
    batch_end(facts)


cdef void fact_opened(Connection *self, const char *peer, const Address *upstream) noexcept nogil:
    cdef Batch *facts = &self.loop.facts
    batch_begin(facts, FACT_OPENED)
    batch_number(facts, self.id)
    batch_text(facts, peer if peer != NULL else <const char *>b"")
    batch_address(facts, upstream)
    batch_end(facts)


cdef void fact_ended(Connection *self, int reason, const char *detail) noexcept nogil:
    cdef Batch *facts = &self.loop.facts
    batch_begin(facts, FACT_ENDED)
    batch_number(facts, self.id)
    batch_number(facts, reason)
    batch_text(facts, detail)
    batch_end(facts)


cdef void fact_begun(Connection *self, const Passage *passage) noexcept nogil:
    cdef Batch *facts = &self.loop.facts
    batch_begin(facts, FACT_BEGUN)
    batch_number(facts, self.id)
    batch_number(facts, self.pod.number)
    batch_number(facts, <uint64_t>self.meter)
    batch_number(facts, passage.alternative)
    batch_number(facts, address_port(&passage.client))
    batch_text(facts, passage.trace)
    batch_number(facts, nanoseconds(passage.begun))
    batch_end(facts)


cdef void fact_passed(Connection *self, const Passage *passage) noexcept nogil:
    """Nobody waits for it: see loop_report."""
    cdef Batch *facts = &self.loop.facts
    cdef size_t before = facts.records.length
    batch_begin(facts, FACT_PASSED)
    batch_number(facts, self.pod.number)
    batch_number(facts, passage.alternative)
    batch_text(facts, <const char *>passage.peer if passage.peer != NULL else <const char *>b"")
    batch_number(facts, address_port(&passage.client))
    batch_number(facts, self.meter.sent)
    batch_number(facts, self.meter.received)
    batch_number(facts, nanoseconds(passage.begun))
    batch_number(facts, nanoseconds(self.loop.now))
    batch_end(facts)
    self.loop.calm += facts.records.length - before


cdef inline uint64_t nanoseconds(double seconds) noexcept nogil:
    return <uint64_t>(seconds * 1e9)


cdef void fact_number(Loop *loop, Fact kind, uint64_t number) noexcept nogil:
    batch_begin(&loop.facts, kind)
    batch_number(&loop.facts, number)
    batch_end(&loop.facts)


cdef void fact_lapsed(Loop *loop, uint64_t fence) noexcept nogil:
    """All that this thread will ever say about connections under orders of before has been said."""
    loop.urgent = True
    fact_number(loop, FACT_LAPSED, fence)


cdef void fact_spent(Pod *pod, uint64_t alternative) noexcept nogil:
    """As `fact_lapsed`, about a standing order that was recalled, by its first alternative."""
    cdef Batch *facts = &pod.loop.facts
    batch_begin(facts, FACT_SPENT)
    batch_number(facts, pod.number)
    batch_number(facts, alternative)
    batch_end(facts)


cdef void fact_deaf(Pod *pod) noexcept nogil:
    fact_number(pod.loop, FACT_DEAF, pod.number)


cdef void fact_pod_gone(Loop *loop, const Common *pod) noexcept nogil:
    batch_begin(&loop.facts, FACT_POD_GONE)
    batch_number(&loop.facts, pod.number)
    batch_number(&loop.facts, pod.life)
    batch_end(&loop.facts)


cdef void fact_withdraw(Loop *loop, uint64_t cookie) noexcept nogil:
    if loop.shared.maps.given:
        announce_withdraw(&loop.shared.maps, cookie)
        return
    fact_number(loop, FACT_WITHDRAW, cookie)


cdef void fact_quiet(Loop *loop) noexcept nogil:
    fact_number(loop, FACT_QUIET, 0)


cdef void fact_turned_away(Loop *loop, int reason, const char *text) noexcept nogil:
    batch_begin(&loop.facts, FACT_TURNED_AWAY)
    batch_number(&loop.facts, reason)
    batch_text(&loop.facts, text)
    batch_end(&loop.facts)


cdef void fact_log(Loop *loop, const char *text) noexcept nogil:
    batch_begin(&loop.facts, FACT_LOG)
    batch_text(&loop.facts, text)
    batch_end(&loop.facts)

# Standing orders: decisions in advance, so that Python decides once about each kind of connection.
#
# A kind is everything that a decision about a connection reads, but the client's port: bytes that are compared as they
# are. Python, asked about the first of a kind, gives with its order one for all that follow (ztunnel.standing); it stands
# until Python lets it lapse, with each change of what it decides by, or recalls it, to make room for another one: how
# many there are is Python's to bound. Each thread has a table of each pod; what is not found there is asked about.
# Refusals never stand.
#
# All lapse at once, whatever the threads are at: each is of a generation, which Python counts. What was begun by one just
# before is told of by the thread as it finds the order to (order_lapse).

cdef enum:
    KIND_BYTES = 1536        # what is longer is asked about
    STANDING_CHAINS = 1024
    MOST_AUTHORITY = 260     # a hostname of 253 characters, a colon, a port
    TRACE_TEXT = 55          # of a W3C traceparent
    HOLE_PORT = 0            # in a header's value: the client's port,
    HOLE_TRACE = 1           # a fresh traceparent
    BPF_LOOKUP = 1           # enum bpf_cmd
    BPF_UPDATE = 2
    BPF_DELETE = 3


# What the kernel side knows and is told of a connection. Layouts: bpf/src/layouts.h


cdef struct Maps:
    # Two maps of the kernel side, by descriptors that the agent owns. Nothing is looked up, and no order stands, unless
    # they are given.
    bint given
    int captured
    int announced


cdef struct CapturedKey:     # struct tuple
    uint64_t netns
    uint8_t local[16]
    uint8_t remote[16]
    uint16_t local_port
    uint16_t remote_port
    uint32_t pad


cdef struct Dialled:         # struct destination
    uint64_t holder
    uint8_t asked[40]        # ip, port, drawn: for Python to read


cdef struct Announced:       # struct endpoint
    uint8_t ip[16]
    uint32_t port


cdef struct MapCall:         # union bpf_attr of the commands on elements
    uint32_t fd
    uint32_t pad
    const void *key
    const void *value
    uint64_t flags


cdef int map_call(int command, int fd, const void *key, const void *value) noexcept nogil:
    """0, or -1 with errno."""
    cdef MapCall call
    memset(&call, 0, sizeof(call))
    call.fd, call.key, call.value = fd, key, value
    return 0 if syscall_(SYS_bpf, <long>command, &call, <long>sizeof(call)) == 0 else -1


cdef void address_bytes(const Address *self, uint8_t *into) noexcept nogil:
    """16 of them; an IPv4 address stands as ::ffff:a.b.c.d."""
    if self.any.sa_family == AF_INET6:
        memcpy(into, &self.six.sin6_addr, 16)
        return
    memset(into, 0, 10)
    into[10] = into[11] = 0xFF
    memcpy(into + 12, &self.four.sin_addr, 4)


cdef bint captured_find(const Maps *self, uint64_t netns, const Address *peer, const Address *local, Dialled *into) noexcept nogil:
    """What was dialled, for a connection accepted by an outbound listener of this netns."""
    cdef CapturedKey key
    memset(&key, 0, sizeof(key))
    key.netns = netns
    address_bytes(local, key.local)
    address_bytes(peer, key.remote)
    key.local_port, key.remote_port = address_port(local), address_port(peer)
    return map_call(BPF_LOOKUP, self.captured, &key, into) == 0


cdef int announce(const Maps *self, uint64_t cookie, const Address *client) noexcept nogil:
    """Before connect() of a last hop: the application shall see `client` as its peer. 0, or -1 with errno."""
    cdef Announced value
    address_bytes(client, value.ip)
    value.port = address_port(client)
    return map_call(BPF_UPDATE, self.announced, &cookie, &value)


cdef void announce_withdraw(const Maps *self, uint64_t cookie) noexcept nogil:
    map_call(BPF_DELETE, self.announced, &cookie, NULL)


# Chance


cdef struct Lots:
    uint64_t state


cdef int lots_new(Lots *self) noexcept nogil:
    return 0 if getrandom(&self.state, sizeof(self.state), 0) == sizeof(self.state) else -1


cdef inline uint64_t lots_draw(Lots *self) noexcept nogil:
    """SplitMix64: evenly spread, no secret."""
    self.state += <uint64_t>0x9e3779b97f4a7c15
    return mixed(self.state)


# Kinds


cdef struct Kind:
    size_t length            # 0: such a connection is asked about
    uint8_t data[1536]


cdef inline void kind_put(Kind *self, const void *data, size_t length) noexcept nogil:
    """Of known length, or with its length before it: no two kinds may read alike."""
    if self.length == 0 or self.length + length > KIND_BYTES:
        self.length = 0
        return
    memcpy(self.data + self.length, data, length)
    self.length += length


cdef inline void kind_text(Kind *self, const void *data, size_t length) noexcept nogil:
    kind_put(self, &length, sizeof(length))
    kind_put(self, data, length)


cdef inline void kind_address(Kind *self, const Address *address) noexcept nogil:
    cdef uint8_t data[16]
    address_bytes(address, data)
    kind_put(self, data, sizeof(data))


cdef inline void kind_begin(Kind *self, const Maps *maps, uint8_t tag) noexcept nogil:
    self.length = 0
    if maps.given:
        self.data[0] = tag
        self.length = 1


cdef void kind_captured(Kind *self, const Pod *pod, const Address *peer, const Address *local) noexcept nogil:
    """What the pod dialled, from which of its addresses."""
    cdef const Maps *maps = &pod.loop.shared.maps
    cdef Dialled dialled
    kind_begin(self, maps, c"c")
    if self.length == 0:
        return
    if not captured_find(maps, pod.common.cookie, peer, local, &dialled):
        self.length = 0
        return
    kind_address(self, peer)
    kind_put(self, dialled.asked, sizeof(dialled.asked))


cdef void kind_plaintext(Kind *self, const Pod *pod, const Address *peer, const Address *local) noexcept nogil:
    cdef uint16_t port = address_port(local)
    kind_begin(self, &pod.loop.shared.maps, c"p")
    kind_address(self, peer)
    kind_address(self, local)
    kind_put(self, &port, sizeof(port))


cdef struct Request:
    # What the headers of a CONNECT say, as far as a decision or a log reads them.
    Kind kind
    Address client           # as the peer's `forwarded` has it, with its port
    char trace[56]


cdef void kind_offered(Request *self, const Tunnel *tunnel, const uint8_t *fields, uint32_t count) noexcept nogil:
    """The request in the form that ztunnel and this agent write (ztunnel.headers); any other is asked about."""
    cdef Kind *kind = &self.kind
    cdef uint32_t lengths[2]
    cdef const uint8_t *name
    cdef const uint8_t *value
    cdef const uint8_t *authority = NULL
    cdef const uint8_t *forwarded = NULL
    cdef bint connect = False, traced = False
    cdef uint32_t authority_length = 0, forwarded_length = 0
    cdef uint16_t port = address_port(&tunnel.local)
    self.trace[0] = 0
    kind_begin(kind, &tunnel.loop.shared.maps, c"t")
    while count and kind.length:
        memcpy(lengths, fields, sizeof(lengths))
        name = fields + sizeof(lengths)
        value = name + lengths[0]
        fields = value + lengths[1]
        count -= 1
        if lengths[0] == 7 and memcmp(name, b":method", 7) == 0:
            connect = lengths[1] == 7 and memcmp(value, b"CONNECT", 7) == 0
        elif lengths[0] == 10 and memcmp(name, b":authority", 10) == 0 and authority == NULL:
            authority, authority_length = value, lengths[1]
        elif lengths[0] and name[0] == c":":
            kind.length = 0
        elif lengths[0] == 9 and memcmp(name, b"forwarded", 9) == 0 and forwarded == NULL:
            forwarded, forwarded_length = value, lengths[1]
        elif lengths[0] == 11 and memcmp(name, b"traceparent", 11) == 0 and not traced:
            traced = True
            trace_read(self.trace, value, lengths[1])
    if not connect or authority == NULL or authority_length > MOST_AUTHORITY or forwarded == NULL:
        kind.length = 0
        return
    kind_address(kind, &tunnel.address)
    kind_address(kind, &tunnel.local)
    kind_put(kind, &port, sizeof(port))
    kind_text(kind, tunnel.peer, strlen(tunnel.peer))
    kind_text(kind, authority, authority_length)
    self.client = tunnel.address
    kind_forwarded(self, <const char *>forwarded, forwarded_length)


cdef void kind_forwarded(Request *self, const char *value, size_t length) noexcept nogil:
    """for="ip:port" of the peer's own address; what follows is part of the kind."""
    cdef char expected[ADDRESS_TEXT + 16]
    cdef char ip[ADDRESS_TEXT]
    cdef size_t at
    cdef uint32_t port = 0
    address_ip(&self.client, ip)
    snprintf(expected, sizeof(expected), b"for=\"[%s]:" if self.client.any.sa_family == AF_INET6 else b"for=\"%s:", ip)
    at = strlen(expected)
    if length <= at or memcmp(value, expected, at) != 0 or not c"1" <= value[at] <= c"9":
        self.kind.length = 0
        return
    while at < length and c"0" <= value[at] <= c"9" and port < 65536:
        port = port * 10 + <uint32_t>(value[at] - c"0")
        at += 1
    if port > 65535 or at == length or value[at] != c"\"":
        self.kind.length = 0
        return
    self.client.four.sin_port = htons(<uint16_t>port)  # at the same place in sockaddr_in6
    kind_text(&self.kind, value + at, length - at)


cdef inline void trace_read(char *into, const uint8_t *value, size_t length) noexcept nogil:
    """As ztunnel.headers.read_traceparent."""
    cdef size_t i
    if length != TRACE_TEXT:
        return
    for i in range(TRACE_TEXT):
        if not 0x20 <= value[i] <= 0x7E:
            return
    memcpy(into, value, TRACE_TEXT)
    into[TRACE_TEXT] = 0


cdef inline void trace_new(char *into, Lots *lots) noexcept nogil:
    """As ztunnel.headers.traceparent: fresh, not sampled."""
    cdef unsigned long long first = lots_draw(lots), second = lots_draw(lots), span = lots_draw(lots)
    snprintf(into, TRACE_TEXT + 1, b"00-%016llx%016llx-%016llx-00", first, second, span)


# Orders


cdef struct Alternative:
    uint64_t number          # names it to Python; those of one order follow each other
    uint64_t upto            # the sum of all weights so far
    bint tunnel
    bint last_hop            # bound to the address that it dials, and the application is shown the client
    Address address          # not of a tunnel: what is dialled
    Buffer order             # of a tunnel: what ORDER_TUNNEL has, with holes; else the headers of the 200


cdef struct Standing:
    # Held by the table of its pod, and by each passage under it: Python keeps its name until the last one is told of.
    long holders
    Standing *chained        # in the table
    Buffer kind
    uint64_t generation
    bint off                 # what is like it is asked about
    bint recalled            # Python waits to hear that it is over
    uint64_t count
    Alternative *alternatives


cdef void standing_release(Pod *pod, Standing *self) noexcept nogil:
    cdef uint64_t i
    self.holders -= 1
    if self.holders:
        return
    if self.recalled:
        fact_spent(pod, self.alternatives[0].number)
    for i in range(self.count):
        buffer_free(&self.alternatives[i].order)
    free(self.alternatives)
    buffer_free(&self.kind)
    free(self)


cdef Standing *standing_read(Cursor *record) noexcept nogil:
    """For its first holder."""
    cdef Standing *self = <Standing *>make(sizeof(Standing))
    cdef Alternative *alternative
    cdef size_t length
    cdef const char *data = cursor_bytes(record, &length)
    cdef uint64_t i
    self.holders = 1
    if buffer_append(&self.kind, data, length) != 0:
        die(b"out of memory")
    self.generation, self.count = cursor_number(record), cursor_number(record)
    self.alternatives = <Alternative *>make(self.count * sizeof(Alternative))
    for i in range(self.count):
        alternative = &self.alternatives[i]
        alternative.number, alternative.upto = cursor_number(record), cursor_number(record)
        alternative.tunnel, alternative.last_hop = cursor_number(record), cursor_number(record)
        if not alternative.tunnel:
            read_address(record, &alternative.address)
        data = cursor_bytes(record, &length)
        if buffer_append(&alternative.order, data, length) != 0:
            die(b"out of memory")
    return self


cdef Alternative *standing_draw(Standing *self, Lots *lots) noexcept nogil:
    """By weight."""
    cdef uint64_t point = lots_draw(lots) % self.alternatives[self.count - 1].upto
    cdef uint64_t i
    for i in range(self.count - 1):
        if point < self.alternatives[i].upto:
            return &self.alternatives[i]
    return &self.alternatives[self.count - 1]


# The table of a pod


cdef Standing **standing_place(Pod *pod, const uint8_t *kind, size_t length) noexcept nogil:
    """Where the one of this kind is held, or would be. The hash is seeded (FNV-1a from the seed on): nobody can choose
    who is in one chain."""
    cdef uint64_t hash_ = <uint64_t>0xcbf29ce484222325 ^ pod.loop.allowances.seed
    cdef Standing **at
    cdef size_t i
    if pod.standing == NULL:
        pod.standing = <Standing **>make(STANDING_CHAINS * sizeof(Standing *))
    for i in range(length):
        hash_ = (hash_ ^ kind[i]) * <uint64_t>0x100000001b3
    at = &pod.standing[mixed(hash_) % STANDING_CHAINS]
    while at[0] != NULL and (at[0].kind.length != length or memcmp(buffer_start(&at[0].kind), kind, length) != 0):
        at = &at[0].chained
    return at


cdef Standing *standing_find(Pod *pod, const Kind *kind) noexcept nogil:
    """NULL: ask Python."""
    cdef Standing *found
    if kind.length == 0 or pod.standing == NULL:
        return NULL
    found = standing_place(pod, kind.data, kind.length)[0]
    if found == NULL or found.off or found.generation != atomic_get64(&pod.loop.shared.generation, RELAXED):
        return NULL
    return found


cdef void standing_remove(Pod *pod, Standing **at) noexcept nogil:
    cdef Standing *found = at[0]
    if found != NULL:
        at[0] = found.chained
        standing_release(pod, found)


cdef void standing_put(Pod *pod, Standing *self) noexcept nogil:
    """Instead of its former self, should there be one. Takes `self`."""
    cdef Standing **at = standing_place(pod, buffer_start(&self.kind), self.kind.length)
    standing_remove(pod, at)
    self.chained = at[0]
    at[0] = self


cdef void standing_off(Pod *pod, const uint8_t *kind, size_t length) noexcept nogil:
    cdef Standing *found = standing_place(pod, kind, length)[0]
    if found != NULL:
        found.off = True


cdef void standing_recall(Pod *pod, const uint8_t *kind, size_t length) noexcept nogil:
    """Python is told when nobody is left under it whom it has not heard of."""
    cdef Standing **at = standing_place(pod, kind, length)
    if at[0] != NULL:
        at[0].recalled = True
        standing_remove(pod, at)


cdef void standing_lapse(Pod *pod) noexcept nogil:
    """All."""
    cdef int i
    if pod.standing == NULL:
        return
    for i in range(STANDING_CHAINS):
        while pod.standing[i] != NULL:
            standing_remove(pod, &pod.standing[i])

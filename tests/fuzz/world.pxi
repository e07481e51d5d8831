# Two loops of the pump whose turns, clock, peers, applications and decisions are all the script's: the same input does
# the same each time. One is the pod's home, the other may be handed what that has accepted.

cdef extern from *:  # seams.h and honest.h come before everything
    enum: SEAM_FARS
    int seam_plain, seam_end, seam_code, seam_small, seam_far_count, seam_away
    int *seam_fars
    long seam_opened, seam_looks
    X509 *seam_certificate
    cdef struct sockaddr_storage:
        pass
    sockaddr_storage seam_local
    void seam_fail(const char *) noexcept nogil
    int seam_mark(int) noexcept nogil
    int seam_pair() noexcept nogil
    void seam_reset(int) noexcept nogil
    X509 *seam_certified(const unsigned char *, long) noexcept nogil
    size_t seam_identity(const char *) noexcept nogil
    SSL *honest_new(SSL_CTX *, int) noexcept nogil
    void honest_hears(SSL *, const unsigned char *, int) noexcept nogil
    int honest_says(SSL *, unsigned char *, int) noexcept nogil
    void honest_speaks(SSL *, const unsigned char *, int) noexcept nogil
    void honest_changes_keys(SSL *) noexcept nogil
    void honest_closes(SSL *) noexcept nogil

cdef extern from "unistd.h" nogil:
    int real_close "(close)"(int)
    int dup_ "dup"(int)

cdef extern from "sys/socket.h" nogil:
    int MSG_DONTWAIT, SHUT_RD
    ssize_t real_recv "(recv)"(int, void *, size_t, int)

cdef extern from "openssl/ssl.h" nogil:
    int SSL_CTX_up_ref(SSL_CTX *)
    int SSL_ERROR_SSL

cdef enum:
    SPINS = 2000             # turns after which a loop that finds no rest is at fault
    LOOPS = 2
    POD_NUMBER = 2           # its home is the first loop
    SOME = 4096


cdef enum Side:
    SIDE_TUNNEL              # a peer of the mesh is at the far end
    SIDE_APPLICATION


cdef struct Far:
    # The far end of one of the pump's sockets.
    int fd                   # -1: closed
    Side side
    SSL *ssl                 # one that speaks TLS as it should; NULL: none
    bint deaf                # it reads only when the script says so
    bint dialled             # by the pump: it is a server


cdef struct Known:
    # A connection that "Python" knows.
    uint64_t id
    Meter *meter
    bint ordered
    Kind kind


cdef struct World:
    Shared shared
    Loop *loops[2]
    Far fars[60]
    int far_count
    Known known[1024]
    int known_count
    int gone                 # pods that Python was told are
    Contexts *ours           # the pod's
    Contexts *theirs         # a member's
    Contexts *strangers      # of another trust domain
    int automatic            # what becomes of a new connection: Choice
    bint strange             # who is dialled is of another trust domain
    const char *haste        # what who is dialled says before anything is asked; NULL: nothing
    size_t haste_length
    long asked               # for tunnels, or for what stands
    uint64_t alternatives    # given; two to each order
    uint64_t lapsed          # up to this one
    uint64_t fenced          # and up to this one, when as many loops as are behind have come by the fence
    uint64_t fence
    int behind
    uint8_t spent[4098]      # loops that have, by the first alternative of an order
    long dialled
    SSL *nobody              # to ask about certificates
    uint8_t *heard
    const uint8_t *said      # the last bytes, for AGAIN
    size_t said_length
    int said_far
    double now
    Batch batch


cdef World world

cdef enum Choice:
    CHOOSE_NOTHING
    CHOOSE_PLAIN
    CHOOSE_TUNNEL
    CHOOSE_REFUSAL
    CHOOSE_CLOSE
    CHOICES


cdef Contexts *contexts_again(const Contexts *of) noexcept nogil:
    cdef Contexts *self = <Contexts *>make(sizeof(Contexts))
    SSL_CTX_up_ref(of.server)
    SSL_CTX_up_ref(of.client)
    self.server, self.client, self.holders = of.server, of.client, LOOPS
    self.identity = copy_text(of.identity, strlen(of.identity))
    return self


# Turns


cdef void fars_adopt() noexcept nogil:
    """Far ends of sockets that the pump made by itself lead to tunnels; the others were taken in already."""
    cdef Far *far
    while world.far_count < seam_far_count:
        far = far_add(SIDE_TUNNEL)
        far.dialled = True
        world.dialled += 1
        if world.haste != NULL:
            send_(far.fd, world.haste, world.haste_length, MSG_NOSIGNAL)
        if not seam_plain:
            far.ssl = honest_new((world.strangers if world.strange else world.theirs).server, 1)


cdef Far *far_add(Side side) noexcept nogil:
    cdef Far *far = &world.fars[world.far_count]
    memset(far, 0, sizeof(Far))
    far.fd, far.side = seam_fars[world.far_count], side
    world.far_count += 1
    return far


cdef void far_hear(Far *self, size_t limit) noexcept nogil:
    cdef ssize_t count
    while limit and self.fd >= 0:
        count = real_recv(self.fd, world.heard, min(limit, <size_t>SOME), MSG_DONTWAIT)
        if count <= 0:
            return
        limit -= count
        if self.ssl != NULL:
            honest_hears(self.ssl, world.heard, <int>count)


cdef bint loop_turned(Loop *self) noexcept nogil:
    """False: there was nothing to do, nor is there."""
    cdef epoll_event events[EVENTS]
    cdef int count = epoll_wait(self.epoll, events, EVENTS, 0)
    self.now = world.now
    loop_round(self, events, max(count, 0))
    loop_report_now(self)
    return count > 0 or turns_waiting(self)


cdef bint world_turn() noexcept nogil:
    """As loop_turned, of both."""
    cdef bint busy = False
    cdef int i
    for i in range(LOOPS):
        busy = loop_turned(world.loops[i]) or busy
    fars_adopt()
    facts_read()
    return busy


cdef void world_decide() noexcept nogil:
    cdef int i = 0
    while i < world.known_count:
        if not world.known[i].ordered and world.automatic != CHOOSE_NOTHING:
            decide(&world.known[i], world.automatic, 0)
            facts_read()
        i += 1


cdef void world_settle() noexcept nogil:
    """Turns until nothing is left to do."""
    cdef int turn, i
    cdef bint busy
    for turn in range(SPINS):
        world_decide()
        busy = world_turn()
        for i in range(world.far_count):
            if not world.fars[i].deaf:
                far_hear(&world.fars[i], CHUNK)
        if not busy:
            return
    seam_fail(b"the loop finds no rest")


# Beginning and end


cdef void pod_order(Order kind, uint64_t value) noexcept nogil:
    """To each loop, its home first."""
    cdef int i
    for i in range(LOOPS):
        batch_begin(&world.batch, kind)
        batch_number(&world.batch, POD_NUMBER)
        batch_number(&world.batch, value)
        order_send(world.loops[i])


cdef void pod_certify(const Contexts *of) noexcept nogil:
    pod_order(ORDER_CREDENTIALS, <uint64_t>contexts_again(of))


cdef Common *life_new(uint64_t life, const char *netns) noexcept nogil:
    """Of the pod; for each loop to be told of."""
    return common_new(LOOPS, POD_NUMBER, life, copy_text(b"pod", 3), copy_text(b"cluster.local", 13),
                      seam_mark(open_(netns, O_RDONLY | O_CLOEXEC)), life)


cdef void life_tell(Common *common, int i) noexcept nogil:
    cdef int door
    batch_begin(&world.batch, ORDER_POD)
    batch_number(&world.batch, <uint64_t>common)
    for door in range(DOORS):
        # Nobody connects to this one.
        batch_number(&world.batch, <uint64_t><int64_t>(
            seam_mark(dup_(<int>world.loops[0].home)) if i == 0 and door == 0 else -1))
    order_send(world.loops[i])


cdef void pod_enrol() noexcept nogil:
    cdef Common *common = life_new(1, b"/dev/null")
    cdef int i
    for i in range(LOOPS):
        life_tell(common, i)


cdef void world_begin() noexcept nogil:
    """A pod with a certificate; nothing else."""
    global seam_end, seam_code, seam_small, seam_looks
    cdef Loop *loop
    cdef int i
    for i in range(LOOPS):
        loop = world.loops[i]
        loop.now = 1000.0
        loop.serial = 0
        memset(loop.logged_since, 0, sizeof(loop.logged_since))
        memset(loop.allowances.table, 0, ALLOWANCES * sizeof(Allowance))
        loop.allowances.seed = loop.lots.state = 1
    world.now = 1000.0
    memset(world.shared.refused, 0, sizeof(world.shared.refused))
    memset(world.shared.inquiries.table, 0, INQUIRIES * sizeof(Inquiry))
    world.shared.inquiries.seed = 1
    seam_end = seam_code = seam_small = seam_looks = 0
    world.haste, world.asked, world.dialled, world.gone = NULL, 0, 0, 0
    world.alternatives = world.lapsed = world.fenced = world.behind = 0
    memset(world.spent, 0, sizeof(world.spent))
    world.automatic, world.said, world.said_length, world.strange = CHOOSE_NOTHING, NULL, 0, False
    pod_enrol()
    pod_certify(world.ours)


cdef void expect(bint held, const char *otherwise) noexcept nogil:
    if not held:
        seam_fail(otherwise)


cdef void loop_over(Loop *self) noexcept nogil:
    """Nothing may be left."""
    cdef int i
    expect(self.connections.count == 0, b"a connection is left in the table")
    expect(self.pods == NULL, b"a pod is left")
    expect(not turns_waiting(self), b"a task is left")
    for i in range(SPANS):
        expect(self.timers[i].first == NULL, b"a timer is left")
    for i in range(GROUP_CHAINS):
        expect(self.groups.chains[i] == NULL, b"a group is left")
    for i in range(PEER_CHAINS):
        expect(self.peers.chains[i] == NULL, b"a peer is left")
    connections_free(&self.connections)
    self.connections.size = 0


cdef void world_end() noexcept nogil:
    """Everything ends, as when the agent stops."""
    cdef int i
    global seam_far_count
    for i in range(LOOPS):
        order_clear(world.loops[i])
    world_turn()
    for i in range(LOOPS):
        order_stop(world.loops[i])
        world.loops[i].stopped = False
    world_turn()
    world_turn()  # what one loop told the other in that
    for i in range(world.far_count):
        if world.fars[i].fd >= 0:
            real_close(world.fars[i].fd)
        if world.fars[i].ssl != NULL:
            SSL_free(world.fars[i].ssl)
    world.far_count = seam_far_count = 0
    expect(world.dialled <= world.asked * world.shared.limits.attempts * world.shared.limits.attempts,
           b"a peer was dialled over and over")
    expect(world.known_count == 0, b"a connection never ended")
    expect(world.gone == 1, b"of a pod's end Python was not told once")
    expect(world.shared.connections == 0, b"the count of connections is wrong")
    expect(world.shared.tunnels == 0, b"the count of tunnels is wrong")
    expect(world.shared.descriptors == 0, b"the count of descriptors is wrong")
    expect(world.shared.buffered == 0 and world.shared.growth == 0, b"the count of bytes is wrong")
    for i in range(LOOPS):
        loop_over(world.loops[i])
    expect(seam_opened == 0, b"a descriptor is left open")


cdef int world_make(dict engine, ours, theirs, strangers) except -1:
    """Once. `engine`: what PumpEngine would give to Pump."""
    global seam_certificate
    if wire_prepare() != 0:
        raise MemoryError
    world.shared.threads, world.shared.loops, world.shared.maps.given = LOOPS, world.loops, True
    cdef int i
    pthread_mutex_init(&world.shared.facts.lock, NULL)
    inquiries_new(&world.shared.inquiries)
    fill_limits(&world.shared.limits, engine["limits"], engine["server"], engine["client"], engine["http"])
    for reason, status in engine["statuses"].items():
        world.shared.status[<int>reason] = status
    world.shared.facts.bell = bell()
    for i in range(LOOPS):
        world.loops[i] = loop_new(&world.shared, i, bell())
    world.heard = <uint8_t *>make(SOME)
    world.ours, world.theirs, world.strangers = contexts_new(ours), contexts_new(theirs), contexts_new(strangers)
    world.nobody = SSL_new(world.ours.server)
    seam_certificate = certificate_of(theirs.chain[0])
    return 0

# Python's part: it takes the facts, and looks at them closely, and gives the orders that a script decides.


cdef Known *known_find(uint64_t id) noexcept nogil:
    cdef int i
    for i in range(world.known_count):
        if world.known[i].id == id:
            return &world.known[i]
    return NULL


cdef void known_add(uint64_t id, uint64_t meter) noexcept nogil:
    if known_find(id) != NULL or meter == 0:
        seam_fail(b"a connection was reported twice")
    if world.known_count == 1024:
        seam_fail(b"more connections than limits allow")
    world.known[world.known_count].id = id
    world.known[world.known_count].meter = <Meter *>meter
    world.known[world.known_count].ordered = False
    world.known_count += 1


cdef void known_kind(Cursor *record) noexcept nogil:
    """Of the last one that was added."""
    cdef Kind *kind = &world.known[world.known_count - 1].kind
    cdef const char *data = cursor_bytes(record, &kind.length)
    if kind.length > KIND_BYTES:
        seam_fail(b"a kind is too long")
    memcpy(kind.data, data, kind.length)


cdef void known_ended(uint64_t id) noexcept nogil:
    cdef Known *known = known_find(id)
    if known == NULL:
        seam_fail(b"the end of a connection that is not open")
    free(known.meter)
    world.known_count -= 1
    known[0] = world.known[world.known_count]


cdef void check_address(Cursor *record) noexcept nogil:
    cdef size_t length
    cursor_bytes(record, &length)
    cursor_number(record)


cdef void check_fields(Cursor *record) noexcept nogil:
    """As Python reads them: so many, and not a byte more."""
    cdef uint64_t count = cursor_number(record)
    cdef size_t length
    cdef const uint8_t *at = <const uint8_t *>cursor_bytes(record, &length)
    cdef const uint8_t *end = at + length
    cdef uint32_t lengths[2]
    while count:
        if <size_t>(end - at) < sizeof(lengths):
            seam_fail(b"fewer header fields than were counted")
        memcpy(lengths, at, sizeof(lengths))
        at += sizeof(lengths)
        if <size_t>(end - at) < <size_t>lengths[0] + lengths[1]:
            seam_fail(b"a header field is longer than its block")
        at += lengths[0] + lengths[1]
        count -= 1
    if at != end:
        seam_fail(b"more header fields than were counted")


cdef void under_read(Cursor *record) noexcept nogil:
    """The alternative of a connection."""
    cdef uint64_t number = cursor_number(record)
    if not 0 < number <= world.alternatives:
        seam_fail(b"a connection under an order that nobody gave")
    if number <= world.lapsed or world.spent[number - (number - 1) % 2] == LOOPS:
        seam_fail(b"a connection under an order that is over")


cdef void fact_read(Cursor *record) noexcept nogil:
    cdef uint64_t kind = cursor_number(record)
    cdef uint64_t id
    cdef size_t length
    if kind == FACT_ACCEPTED or kind == FACT_OFFERED:
        id = cursor_number(record)
        cursor_number(record)
        known_add(id, cursor_number(record))
        if kind == FACT_ACCEPTED:
            cursor_number(record)
        check_address(record)
        check_address(record)
        if kind == FACT_OFFERED:
            cursor_bytes(record, &length)
            check_fields(record)
        known_kind(record)
        if record.at != record.end:
            seam_fail(b"a fact of another length")
    elif kind == FACT_BEGUN:
        id = cursor_number(record)
        cursor_number(record)
        known_add(id, cursor_number(record))
        known_find(id).ordered = True
        under_read(record)
        world.asked += 1
    elif kind == FACT_PASSED:
        cursor_number(record)
        under_read(record)
        cursor_bytes(record, &length)
        record.at += 5 * sizeof(uint64_t)
        if record.at != record.end:
            seam_fail(b"a fact of another length")
        world.asked += 1
    elif kind == FACT_SPENT:
        cursor_number(record)
        id = cursor_number(record)
        if not 0 < id <= world.alternatives or world.spent[id] == LOOPS:
            seam_fail(b"the end of an order that did not stand")
        world.spent[id] += 1
    elif kind == FACT_LAPSED:
        if cursor_number(record) == world.fence:  # an earlier one counts for nothing
            world.behind -= 1
            if world.behind == 0:
                world.lapsed = world.fenced
    elif kind == FACT_ENDED:
        known_ended(cursor_number(record))
    elif kind == FACT_POD_GONE:
        world.gone += 1
    elif kind == FACT_OPENED:
        if known_find(cursor_number(record)) == NULL:
            seam_fail(b"a connection is open that is not known")


cdef void facts_read() noexcept nogil:
    cdef Buffer taken
    cdef Cursor rest, record
    cdef int i
    memset(&taken, 0, sizeof(taken))
    mail_take(&world.shared.facts, &taken)
    rest.at = buffer_start(&taken)
    rest.end = rest.at + taken.length
    while cursor_record(&rest, &record):
        fact_read(&record)
    buffer_free(&taken)


cdef void order_send(Loop *to) noexcept nogil:
    cdef Cursor rest, record
    batch_end(&world.batch)
    rest.at = buffer_start(&world.batch.records)
    rest.end = rest.at + world.batch.records.length
    cursor_record(&rest, &record)
    carry_out(to, &record)
    buffer_drop(&world.batch.records, world.batch.records.length)


cdef void order_address() noexcept nogil:
    cdef Address address
    address_parse(&address, b"10.0.0.7", 15008)
    batch_put(&world.batch, &address, sizeof(address))


cdef void order_fields() noexcept nogil:
    batch_number(&world.batch, 1)
    batch_text(&world.batch, b"baggage")
    batch_text(&world.batch, b"k8s.cluster.name=fuzz")


cdef void order_tunnel_fields(const char *key) noexcept nogil:
    order_address()
    batch_text(&world.batch, key)
    batch_text(&world.batch, world.ours.identity)
    batch_text(&world.batch, world.theirs.identity)
    batch_text(&world.batch, b"10.0.0.7:8080")


cdef void stand(const Kind *kind, bint tunnel, const char *key) noexcept nogil:
    """For all like it: two alternatives."""
    cdef Batch piece
    cdef int i, each
    cdef Batch outer
    if kind.length == 0 or world.alternatives + 2 > SOME:
        return
    for i in range(LOOPS):
        batch_begin(&world.batch, ORDER_STAND)
        batch_number(&world.batch, POD_NUMBER)
        batch_bytes(&world.batch, kind.data, kind.length)
        batch_number(&world.batch, world.shared.generation)
        batch_number(&world.batch, 2)
        for each in range(2):
            batch_number(&world.batch, world.alternatives + 1 + each)
            batch_number(&world.batch, each + 1)
            batch_number(&world.batch, tunnel)
            batch_number(&world.batch, each)
            if not tunnel:
                order_address()
            memset(&piece, 0, sizeof(piece))
            outer, world.batch = world.batch, piece
            if tunnel:
                order_tunnel_fields(key)
            batch_number(&world.batch, 1)
            batch_text(&world.batch, b"forwarded")
            batch_bytes(&world.batch, b"for=\"10.0.0.6:\0\" \1", 19)
            piece, world.batch = world.batch, outer
            batch_bytes(&world.batch, buffer_start(&piece.records), piece.records.length)
            buffer_free(&piece.records)
        order_send(world.loops[i])
    world.alternatives += 2


cdef void recall(const Kind *kind) noexcept nogil:
    cdef int i
    for i in range(LOOPS):
        batch_begin(&world.batch, ORDER_RECALL)
        batch_number(&world.batch, POD_NUMBER)
        batch_bytes(&world.batch, kind.data, kind.length)
        order_send(world.loops[i])


cdef void lapse() noexcept nogil:
    world.shared.generation += 1
    world.fence += 1
    world.fenced, world.behind = world.alternatives, LOOPS
    pod_order(ORDER_LAPSE, world.fence)


cdef void decide(Known *known, int choice, int variant) noexcept nogil:
    """`variant` names the tunnel's key, or the reason; 16 is added where it shall stand for all like it."""
    cdef Loop *to = world.loops[known.id % LOOPS]
    cdef char key[16]
    cdef int fd
    known.ordered = True
    snprintf(key, sizeof(key), b"key %d", variant % 3)
    if variant & 16 and (choice == CHOOSE_PLAIN or choice == CHOOSE_TUNNEL):
        stand(&known.kind, choice == CHOOSE_TUNNEL, key)
    if choice == CHOOSE_PLAIN:
        fd = seam_pair()
        if fd < 0:
            choice = CHOOSE_REFUSAL
        else:
            far_add(SIDE_APPLICATION)
            batch_begin(&world.batch, ORDER_PLAIN)
            batch_number(&world.batch, known.id)
            batch_number(&world.batch, fd)
            batch_number(&world.batch, variant)
            order_address()
            order_fields()
            order_send(to)
            return
    if choice == CHOOSE_TUNNEL:
        world.asked += 1
        batch_begin(&world.batch, ORDER_TUNNEL)
        batch_number(&world.batch, known.id)
        order_tunnel_fields(key)
        order_fields()
        order_send(to)
    elif choice != CHOOSE_NOTHING:
        batch_begin(&world.batch, ORDER_FAIL)
        batch_number(&world.batch, known.id)
        batch_number(&world.batch, LIMIT if variant & 1 else NO_DESTINATION)
        batch_text(&world.batch, b"decided")
        batch_number(&world.batch, choice == CHOOSE_CLOSE)
        order_send(to)

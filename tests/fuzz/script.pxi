# An input is a script: steps of one byte each with their arguments, numbers in little endian, until it is used up. A
# step whose arguments are cut short takes what there is. tests/fuzz/steps.py writes the same.
#
# After a step the loops turn until they rest, unless bit 7 of the step is set: then what follows comes in the same
# breath.

cdef enum Step:
    SAY                      # far, length:16, bytes as they are
    FRAME                    # far, type, flags, stream, length:16, payload: an HTTP/2 frame with the right length
    HELLO                    # far: preface (to a server) and SETTINGS
    AGAIN                    # times: the last bytes said
    BULK                     # far, stream, KiB: DATA to a tunnel, bytes of an application
    HEAR                     # far, units of 256 bytes; 0: from now on it is deaf, 255: no longer
    LEAVE                    # far, how: 0 FIN, 1 close, 2 reset, 3 reads no more
    WAIT                     # quarter seconds up to 63, then seconds
    DIAL                     # a tunnel from outside: number of the address
    CAPTURE                  # an application connects: 0 to the outside, 1 plaintext from outside
    DECIDE                   # connection, Choice, variant
    CHANGE                   # the pod: 0 a new certificate, 1 a stranger's, 2 unlisten, 3 retire, 4 drop, 5 pause;
                             # LAPSE: no order stands; RECALL, connection: none for those like it
    STUMBLE                  # errno of the next connect()
    CUT                      # TLS left out: 0 close_notify, 1 an error, at the end of what comes next
    SHAKE                    # far, offset:16, xor, percent: what an honest peer says next, changed there and cut short
    SPEAK                    # far, length:16, bytes: encrypted by an honest peer
    KEYS                     # far, times: new keys
    BYE                      # far: close_notify
    TURN                     # one turn only
    STEPS

cdef enum:
    LAPSE = 77
    RECALL = 78
    AT_ONCE = 64 << 10       # written to a far end before the loop has turned
    MOST_SAID = 1 << 20      # by one script


cdef struct Script:
    const uint8_t *at
    const uint8_t *end
    size_t budget            # bytes that may still be said


cdef uint32_t script_byte(Script *self) noexcept nogil:
    cdef uint32_t found
    if self.at >= self.end:
        return 0
    found = self.at[0]
    self.at += 1
    return found


cdef uint32_t script_number(Script *self) noexcept nogil:
    cdef uint32_t low = script_byte(self)
    return low | script_byte(self) << 8


cdef const uint8_t *script_bytes(Script *self, size_t *length) noexcept nogil:
    cdef const uint8_t *found
    length[0] = script_number(self)
    length[0] = min(length[0], <size_t>(self.end - self.at))
    found = self.at
    self.at += length[0]
    return found


cdef Far *script_far(Script *self) noexcept nogil:
    """NULL: there is none."""
    cdef uint32_t number = script_byte(self)
    return &world.fars[number % <uint32_t>world.far_count] if world.far_count else NULL


cdef void say(Script *self, Far *far, const uint8_t *data, size_t length) noexcept nogil:
    """As much as the pump takes; it may have to turn for that, a few times."""
    cdef size_t sent = 0
    cdef ssize_t count
    cdef int i
    length = min(length, self.budget)
    self.budget -= length
    for i in range(16):
        if sent == length or far.fd < 0:
            return
        count = send_(far.fd, data + sent, min(length - sent, <size_t>AT_ONCE), MSG_NOSIGNAL)
        if count > 0:
            sent += count
        elif errno != EAGAIN:
            return
        if sent < length:
            world_settle()


cdef void say_and_keep(Script *self, Far *far, const uint8_t *data, size_t length) noexcept nogil:
    world.said, world.said_length, world.said_far = data, length, <int>(far - world.fars)
    say(self, far, data, length)


cdef void frame_head(uint8_t *into, size_t length, uint8_t kind, uint8_t flags, uint32_t stream) noexcept nogil:
    into[0], into[1], into[2] = <uint8_t>(length >> 16), <uint8_t>(length >> 8), <uint8_t>length
    into[3], into[4] = kind, flags
    into[5], into[6], into[7], into[8] = (
        <uint8_t>(stream >> 24), <uint8_t>(stream >> 16), <uint8_t>(stream >> 8), <uint8_t>stream)


cdef void step_frame(Script *self) noexcept nogil:
    cdef Far *far = script_far(self)
    cdef uint8_t kind = <uint8_t>script_byte(self)
    cdef uint8_t flags = <uint8_t>script_byte(self)
    cdef uint32_t stream = script_byte(self)
    cdef size_t length
    cdef const uint8_t *payload = script_bytes(self, &length)
    if far == NULL:
        return
    if stream >= 0xF8:  # the far end of the range
        stream += 0x7FFFFF00
    if frame_room < 9 + length:
        return
    frame_head(frame, length, kind, flags, stream)
    memcpy(frame + 9, payload, length)
    say_and_keep(self, far, frame, 9 + length)


cdef enum:
    frame_room = 9 + 65536

cdef uint8_t frame[9 + 65536]
cdef uint8_t bulk[1024 + 9]


cdef void step_hello(Script *self) noexcept nogil:
    cdef Far *far = script_far(self)
    if far != NULL:
        hello(self, far)


cdef void hello(Script *self, Far *far) noexcept nogil:
    cdef uint8_t settings[9]
    frame_head(settings, 0, 4, 0, 0)
    say(self, far, <const uint8_t *>b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0 if far.dialled else 24)
    say(self, far, settings, 9)
    settings[4] = 1
    say(self, far, settings, 9)


cdef void step_bulk(Script *self) noexcept nogil:
    cdef Far *far = script_far(self)
    cdef uint32_t stream = script_byte(self)
    cdef uint32_t count = script_byte(self)
    if far == NULL:
        return
    while count:
        frame_head(bulk, 1024, 0, 0, stream)
        if far.side == SIDE_TUNNEL:
            say(self, far, bulk, sizeof(bulk))
        else:
            say(self, far, bulk + 9, 1024)
        if count & 1:  # windows are returned meanwhile
            world_settle()
        count -= 1


cdef void step_hear(Script *self) noexcept nogil:
    cdef Far *far = script_far(self)
    cdef uint32_t units = script_byte(self)
    if far == NULL:
        return
    if units == 0 or units == 255:
        far.deaf = units == 0
    else:
        far_hear(far, units * 256)


cdef void step_leave(Script *self) noexcept nogil:
    cdef Far *far = script_far(self)
    cdef uint32_t how = script_byte(self) & 3
    if far == NULL or far.fd < 0:
        return
    if how == 0:
        shutdown_(far.fd, SHUT_WR)
    elif how == 3:
        shutdown_(far.fd, SHUT_RD)
    else:
        far_hear(far, CHUNK)
        if how == 2:
            seam_reset(<int>(far - world.fars))
        real_close(far.fd)
        far.fd = -1


cdef void accepted(int door, int fd, const char *peer) noexcept nogil:
    """As by an accept loop."""
    cdef Pod *pod = pod_find(world.loops[0], POD_NUMBER)
    cdef Address from_
    address_parse(&from_, peer, 40000)
    address_parse(<Address *>&seam_local, b"10.0.0.7", 15008)
    listener_accepted(&pod.listeners[door], fd, &from_)


cdef bint pod_accepts() noexcept nogil:
    cdef Pod *pod = pod_find(world.loops[0], POD_NUMBER)
    return pod != NULL and pod.listening


cdef void step_dial(Script *self) noexcept nogil:
    cdef uint32_t number = script_byte(self)
    cdef char ip[32]
    cdef int fd = seam_pair() if pod_accepts() else -1
    cdef Far *far
    if fd < 0:
        return
    far = far_add(SIDE_TUNNEL)
    if not seam_plain:
        far.ssl = honest_new((world.strangers if number & 8 else world.theirs).client, 0)
    snprintf(ip, sizeof(ip), b"10.0.1.%u" if number & 4 else b"fd00::%x", number & 3)
    accepted(TUNNEL4, fd, ip)


cdef void step_capture(Script *self) noexcept nogil:
    cdef int door = PLAINTEXT4 if script_byte(self) & 1 else OUTBOUND4
    cdef int fd = seam_pair() if pod_accepts() else -1
    if fd >= 0:
        far_add(SIDE_APPLICATION)
        accepted(door, fd, b"10.0.0.6")


cdef void step_decide(Script *self) noexcept nogil:
    cdef uint32_t number = script_byte(self)
    cdef int choice = <int>(script_byte(self) % CHOICES)
    cdef int variant = <int>script_byte(self)
    if world.known_count:
        decide(&world.known[number % <uint32_t>world.known_count], choice, variant)


cdef void step_change(Script *self) noexcept nogil:
    cdef uint32_t what = script_byte(self)
    cdef int i
    if what == LAPSE:
        lapse()
        return
    if what == RECALL:
        what = script_byte(self)
        if world.known_count:
            recall(&world.known[what % <uint32_t>world.known_count].kind)
        return
    what %= 6
    if what < 2:
        pod_certify(world.strangers if what else world.ours)
    elif what == 5:
        for i in range(LOOPS):
            order_pause(world.loops[i])
    else:
        pod_order(ORDER_UNLISTEN if what == 2 else ORDER_RETIRE if what == 3 else ORDER_DROP, POD_GONE)


cdef void step_honest(Script *self, int step) noexcept nogil:
    """What peers do that know TLS, and what became of it on the way."""
    cdef Far *far = script_far(self)
    cdef size_t length = 0
    cdef uint32_t offset = 0, changed = 0, percent = 100, times
    cdef const uint8_t *data
    cdef int count
    if step == SHAKE:
        offset, changed, percent = script_number(self), script_byte(self), script_byte(self)
    elif step == SPEAK:
        data = script_bytes(self, &length)
    elif step == KEYS:
        times = script_byte(self) & 63
    if far == NULL or far.ssl == NULL:
        return
    far_hear(far, CHUNK)
    if step == SHAKE:
        honest_hears(far.ssl, NULL, 0)
    elif step == SPEAK:
        honest_speaks(far.ssl, data, <int>length)
    elif step == KEYS:
        while times:
            honest_changes_keys(far.ssl)
            times -= 1
    else:
        honest_closes(far.ssl)
    while True:
        count = honest_says(far.ssl, frame, frame_room)
        if count == 0:
            return
        frame[offset % <uint32_t>count] ^= changed
        say(self, far, frame, count if percent >= 100 else count * percent // 100)


cdef void step_take(Script *self, int step) noexcept nogil:
    cdef size_t length
    cdef const uint8_t *data
    cdef uint32_t number
    cdef Far *far
    global seam_code, seam_end
    if step == SAY:
        far = script_far(self)
        data = script_bytes(self, &length)
        if far != NULL:
            say_and_keep(self, far, data, length)
    elif step == FRAME:
        step_frame(self)
    elif step == HELLO:
        step_hello(self)
    elif step == AGAIN:
        number = script_byte(self)
        while number and world.said_length:
            say(self, &world.fars[world.said_far], world.said, world.said_length)
            number -= 1
    elif step == BULK:
        step_bulk(self)
    elif step == HEAR:
        step_hear(self)
    elif step == LEAVE:
        step_leave(self)
    elif step == WAIT:
        number = script_byte(self)
        world.now += number * 0.25 if number < 64 else <double>number
    elif step == DIAL:
        step_dial(self)
    elif step == CAPTURE:
        step_capture(self)
    elif step == DECIDE:
        step_decide(self)
    elif step == CHANGE:
        step_change(self)
    elif step == STUMBLE:
        number = script_byte(self) % 3
        seam_code = EINPROGRESS if number == 0 else ECONNRESET if number == 1 else EPIPE
    elif step == CUT:
        seam_end = SSL_ERROR_SSL if script_byte(self) & 1 else SSL_ERROR_ZERO_RETURN
    elif step != TURN:
        step_honest(self, step)


cdef void script_run(Script *self) noexcept nogil:
    cdef uint32_t step
    self.budget = MOST_SAID
    while self.at < self.end:
        step = script_byte(self)
        step_take(self, <int>((step & 0x7F) % STEPS))
        if (step & 0x7F) % STEPS == TURN:
            world_turn()
        elif not step & 0x80:
            world_settle()
    world_settle()

# One tunnel connection of either role: TLS and HTTP/2 put together, from the handshake to the last words.
#
# Reading never waits for writing (two peers doing that would wait for each other); what a peer could make us queue
# without reading it is bounded by the HTTP/2 session, and at last by MOST_UNSENT.

cdef enum:
    PIECES = 32              # frames of one write
    # Framed at once: what the socket does not take of it waits before the next stream's turn. Seven full frames, each a
    # TLS record, leave in two packets of the kernel's largest size; a little more would need a third for the rest.
    PULL = 7 << 14
    LAST_PULLS = 8           # of last words
    COUNTED = 4 << 10        # bytes: less is not told
    MOST_UNSENT = 4 << 20    # answers to TLS messages that a peer provokes and does not read


cdef struct Tunnel:
    # Owned by its group (client) or its pod (server) until it is over; its streams and session die with it, its
    # socket lives on for the last words. `group` tells the role.
    Loop *loop
    Socket *socket
    SSL *ssl
    core.Session *session    # NULL until TLS is up
    Pod *pod
    Group *group             # NULL: server role
    Address address          # the peer's
    Address local            # server: what the peer dialled
    char *peer               # its identity, once it was verified
    bint retired             # no new stream shall use it
    bint announced           # server: our first GOAWAY is on its way
    bint stalled             # the socket has not taken all
    bint heard               # the peer's SETTINGS: it has accepted our certificate
    bint going_away          # the peer's GOAWAY
    bint over
    bint greeted             # client: its first words are on their way
    bint handshaking         # server: in the pod's list of those
    Loop *bound_for          # server: the thread that it is about to be handed to
    Buffer early             # server: what came behind the handshake, for that thread
    Streams streams
    Stream *awaited
    Stream *refused
    int64_t held             # streams not let go by their connections
    int64_t growth           # sum of all windows beyond the first size
    int64_t inbound          # bytes received that wait in its streams
    int64_t counted          # bytes that its pod and the node were told of
    double ping_sent         # 0: no answer is awaited
    uint64_t pings
    Timer timer              # of the handshake, then of the next PING
    Timer grace
    Timer idle               # client
    Task step
    Task flush
    Task freed
    Tunnel *previous         # of the owner's list
    Tunnel *following
    Tunnel *older            # server: of the pod's list of handshakes, the oldest first
    Tunnel *younger
    Corpse corpse


cdef Tunnel *tunnel_new(
    Loop *loop, Socket *socket, Pod *pod, Group *group, SSL_CTX *context, const Address *address
) noexcept nogil:
    """Takes `socket`. NULL, and that is closed: no memory for TLS."""
    cdef Tunnel *self = <Tunnel *>make(sizeof(Tunnel))
    self.loop, self.socket, self.pod, self.group = loop, socket, pod, group
    self.address = address[0]
    self.ssl = tls_session(context, group == NULL, self)
    if self.ssl == NULL:
        socket_abort(socket)
        free(self)
        return NULL
    self.step.run, self.step.owner = tunnel_step, self
    self.flush.run, self.flush.owner = tunnel_flush, self
    self.freed.run, self.freed.owner = tunnel_freed, self
    socket.changed, socket.owner = tunnel_socket_changed, self
    timer_start(loop, &self.timer, HANDSHAKE, tunnel_late, self)
    turn_task(loop, &pod.turn, &self.step)
    atomic_add(&loop.shared.tunnels, 1, RELAXED)
    return self


cdef void tunnel_dispose(void *of) noexcept nogil:
    cdef Tunnel *self = <Tunnel *>of
    SSL_free(self.ssl)
    core.session_free(self.session)
    free(self.streams.chains)
    free(self.peer)
    buffer_free(&self.early)
    free(self)


cdef inline void tunnel_flush_soon(Tunnel *self) noexcept nogil:
    if not self.over:
        turn_flush(self.loop, &self.pod.turn, &self.flush)


cdef inline void tunnel_freed_soon(Tunnel *self) noexcept nogil:
    if not self.over:
        turn_task(self.loop, &self.pod.turn, &self.freed)


cdef inline bint tunnel_retired(const Tunnel *self) noexcept nogil:
    return self.retired or self.over or self.going_away


cdef inline bint tunnel_idle(const Tunnel *self) noexcept nogil:
    """No stream, nor a relay that still has bytes of one."""
    return self.held == 0 and self.streams.count == 0


cdef inline size_t tunnel_backlog(const Tunnel *self) noexcept nogil:
    """Bytes accepted for sending and not with the kernel yet."""
    if self.session == NULL:
        return self.socket.out.length
    return self.socket.out.length + self.session.out.length + self.session.queued


cdef inline void tunnel_count(Tunnel *self, int64_t bytes) noexcept nogil:
    """So many are held. Small changes are not worth telling."""
    cdef int64_t change = bytes - self.counted
    if -COUNTED < change < COUNTED and bytes:
        return
    self.counted = bytes
    pod_hold(self.pod, change)


cdef inline void tunnel_account(Tunnel *self) noexcept nogil:
    if not self.over:
        tunnel_count(self, self.inbound + <int64_t>tunnel_backlog(self))


cdef int64_t tunnel_vacancies(Tunnel *self) noexcept nogil:
    """Streams that can be opened now (client)."""
    cdef int64_t own
    if self.session == NULL or tunnel_retired(self):
        return 0
    own = self.loop.shared.limits.streams_opened - <int64_t>self.streams.count
    return min(own, <int64_t>core.session_available_streams(self.session))


# Bytes in


cdef void tunnel_socket_changed(void *of) noexcept nogil:
    cdef Tunnel *self = <Tunnel *>of
    if self.over:
        return
    if self.socket.readable or self.socket.error:
        turn_task(self.loop, &self.pod.turn, &self.step)
    if self.stalled and self.socket.writable:
        tunnel_flush_soon(self)


cdef void tunnel_step(void *of) noexcept nogil:
    """Take what has arrived, within bounds."""
    cdef Tunnel *self = <Tunnel *>of
    cdef Socket *sock = self.socket
    cdef ssize_t count
    if self.over:
        return
    if self.group != NULL and not self.greeted:  # the client speaks first
        self.greeted = True
        self.loop.feed_left = 0
        tunnel_shake(self)
        if self.over:
            return
    count = socket_read(sock, self.loop.cipher, CIPHER)
    if count == NOTHING:
        return
    if count == 0:
        tunnel_lose_explained(self, TUNNEL_LOST, b"the peer closed the connection")
        return
    if count == FAILED:
        tunnel_lose_explained(self, socket_reason(sock), error_text(sock.error))
        return
    self.loop.feed, self.loop.feed_left = self.loop.cipher, count
    if not tunnel_take(self):
        return
    if self.bound_for != NULL:
        spread_hand_over(self)
    elif not socket_drained(sock, count, CIPHER):
        turn_task(self.loop, &self.pod.turn, &self.step)


cdef bint tunnel_take(Tunnel *self) noexcept nogil:
    """What was received goes through TLS, then HTTP/2; False: the tunnel is over."""
    cdef size_t total = 0
    cdef int count = 0, error
    cdef char why[256]
    if self.session == NULL and not tunnel_shake(self):
        return not self.over
    while True:
        ERR_clear_error()
        count = SSL_read(self.ssl, self.loop.plain + total, <int>(PLAIN - total))
        if count <= 0:
            break
        total += count
        if PLAIN - total < (16 << 10):
            if not tunnel_receive(self, total):
                return False
            total = 0
    error = SSL_get_error(self.ssl, count)
    if error != SSL_ERROR_WANT_READ and error != SSL_ERROR_ZERO_RETURN:
        tls_error(self.ssl, why, sizeof(why))  # before anything else asks OpenSSL
    if total and not tunnel_receive(self, total):
        return False
    if error == SSL_ERROR_WANT_READ:
        if self.socket.out.length > MOST_UNSENT:
            tunnel_lose(self, HTTP2_PROTOCOL, b"the peer does not read what it asks for")
        elif self.socket.out.length:
            socket_send(self.socket)
        return not self.over
    if error == SSL_ERROR_ZERO_RETURN:
        tunnel_lose_explained(self, TUNNEL_LOST, b"the peer closed the TLS session")
    else:
        tunnel_lose_explained(self, TLS_FAILED, why)
    return False


cdef bint tunnel_shake(Tunnel *self) noexcept nogil:
    """Go on with the handshake; True once it is complete, the peer verified and HTTP/2 begun."""
    cdef int done, error
    cdef char why[1024]
    ERR_clear_error()
    done = SSL_do_handshake(self.ssl)
    if done == 1:
        return tunnel_begin(self)
    error = SSL_get_error(self.ssl, done)
    if error == SSL_ERROR_WANT_READ:
        socket_send(self.socket)
        return False
    tls_error(self.ssl, why, sizeof(why))
    socket_send(self.socket)  # the alert
    tunnel_lose(self, TLS_FAILED, why)
    return False


cdef bint tunnel_begin(Tunnel *self) noexcept nogil:
    """TLS is up: verify the peer, then speak HTTP/2, here or on another thread."""
    cdef char why[1024]
    cdef Loop *to
    if not tls_agreed(self.ssl):
        tunnel_lose(self, TLS_FAILED, b"the peer did not agree on ALPN h2")
        return False
    if tls_peer(self.ssl, self.pod.trust_domain, self.group.expected if self.group != NULL else NULL, &self.peer,
                why, sizeof(why)) != OK:
        tunnel_lose(self, PEER_IDENTITY, why)
        return False
    if self.group == NULL:
        server_ready(self)
        server_judged(self, True)
        to = spread_tunnel(self.pod)
        if to != self.loop:
            self.bound_for = to
            return False
    return tunnel_speak(self)


cdef bint tunnel_speak(Tunnel *self) noexcept nogil:
    """HTTP/2 begins; False: the tunnel is over."""
    cdef Limits *limits = &self.loop.shared.limits
    self.session = core.session_new(&limits.client if self.group != NULL else &limits.server)
    if self.session == NULL:
        tunnel_lose(self, INTERNAL, b"out of memory")
        return False
    timer_start(self.loop, &self.timer, PING, tunnel_ping, self)
    if self.group != NULL:
        group_ready(self.group, self)
    else:
        server_limit_resets(self)
    tunnel_flush_soon(self)
    return True


cdef bint tunnel_receive(Tunnel *self, size_t length) noexcept nogil:
    core.session_receive(self.session, self.loop.plain, length, self.loop.now)
    tunnel_flush_soon(self)
    tunnel_events(self)
    tunnel_account(self)
    return not self.over


cdef bint tunnel_events(Tunnel *self) noexcept nogil:
    """What HTTP/2 has to say; False: the tunnel is over. Nothing in here makes the session frame or receive."""
    cdef core.Event *event
    cdef size_t i = 0
    cdef char why[256]
    why[0] = 0
    while i < self.session.event_count:
        event = &self.session.events[i]
        i += 1
        if event.kind == core.DATA:
            i += tunnel_data(self, event, self.session.event_count - i)
        elif event.kind == core.TERMINATED:
            snprintf(why, sizeof(why), b"%.*s (error 0x%x)", <int>min(event.length, <size_t>200),
                     <const char *>buffer_start(&self.session.arena) + event.offset, event.code)
        else:
            tunnel_event(self, event)
    core.session_events_done(self.session)
    if why[0]:
        tunnel_lose_explained(self, HTTP2_PROTOCOL, why)
    return not self.over


cdef size_t tunnel_data(Tunnel *self, core.Event *event, size_t left) noexcept nogil:
    """DATA of one stream, as many frames as follow each other, goes to its relay in one piece; how many followed."""
    cdef Stream *stream = streams_find(&self.streams, event.stream)
    cdef iovec pieces[PIECES]
    cdef size_t count = 1, length = event.length
    pieces[0].iov_base, pieces[0].iov_len = <void *>event.data, event.length
    while count <= left and count < PIECES and event[count].kind == core.DATA and event[count].stream == event.stream:
        pieces[count].iov_base, pieces[count].iov_len = <void *>event[count].data, event[count].length
        length += event[count].length
        count += 1
    if stream != NULL:
        stream_received(stream, pieces, count, length)
    return count - 1


cdef void tunnel_event(Tunnel *self, core.Event *event) noexcept nogil:
    cdef Stream *stream = streams_find(&self.streams, event.stream) if event.stream > 0 else NULL
    if event.kind == core.HEADERS:
        tunnel_headers(self, stream, event)
    elif event.kind == core.ENDED:
        if stream != NULL:
            stream.ended = True
            stream_changed(stream)
    elif event.kind == core.RESET:
        if stream != NULL:
            tunnel_reset(stream, event)
    elif event.kind == core.CLOSED:
        if stream != NULL:
            stream_changed(stream)
            stream_unlink(stream)
            tunnel_freed_soon(self)
    elif event.kind == core.WRITABLE:
        if stream != NULL:
            stream_changed(stream)
    elif event.kind == core.PING_ACK:
        self.ping_sent = 0
    elif event.kind == core.SETTINGS:
        self.heard = True
        tunnel_freed_soon(self)
    elif event.kind == core.GOAWAY:
        self.going_away = True
        tunnel_freed_soon(self)


cdef void tunnel_reset(Stream *stream, const core.Event *event) noexcept nogil:
    """The stream was cut: by the peer, or by HTTP/2 on our side because of what the peer did."""
    cdef char why[128]
    cdef char name[24]
    cdef uint32_t code = event.code
    if code == NO_ERROR:
        strcpy(name, b"NO_ERROR")
    elif code == REFUSED_STREAM:
        strcpy(name, b"REFUSED_STREAM")
    elif code == CANCEL:
        strcpy(name, b"CANCEL")
    elif code == CONNECT_ERROR:
        strcpy(name, b"CONNECT_ERROR")
    else:
        snprintf(name, sizeof(name), b"error 0x%x", code)
    stream.unprocessed = code == REFUSED_STREAM
    if event.flags & core.BY_PEER or code == REFUSED_STREAM:
        snprintf(why, sizeof(why), b"the peer reset the stream: %s", name)
        stream_fail(stream, RESET_BY_PEER, why)
    else:
        snprintf(why, sizeof(why), b"the stream was reset for a violation of the peer: %s", name)
        stream_fail(stream, HTTP2_PROTOCOL, why)


cdef int header_status(const uint8_t *at, uint32_t count) noexcept nogil:
    """:status of a block of fields; 0: none."""
    cdef uint32_t lengths[2]
    cdef const uint8_t *value
    while count:
        memcpy(lengths, at, sizeof(lengths))
        value = at + sizeof(lengths) + lengths[0]
        if lengths[0] == 7 and memcmp(at + sizeof(lengths), b":status", 7) == 0 and lengths[1] == 3:
            return (value[0] - 48) * 100 + (value[1] - 48) * 10 + value[2] - 48
        at = value + lengths[1]
        count -= 1
    return 0


cdef void tunnel_headers(Tunnel *self, Stream *stream, const core.Event *event) noexcept nogil:
    cdef const uint8_t *fields = buffer_start(&self.session.arena) + event.offset
    cdef Http2Stream *http
    if self.group != NULL:
        if stream != NULL and not event.flags & (core.INFORMATIONAL | core.TRAILERS):
            stream.answer = header_status(fields, event.count)
            stream_changed(stream)
        return
    if stream != NULL:
        return  # trailers
    http = core.session_stream(self.session, event.stream)
    if http == NULL:  # gone in the same breath: nobody is asked to decide it
        count_refused(self.loop, RESET_BY_PEER, b"a request was reset with what it came with")
        return
    if self.held >= 2 * self.loop.shared.limits.streams_accepted:
        core.session_reset(self.session, http, REFUSED_STREAM)
        return
    server_offered(self, stream_new(self, event.stream), fields, event.length, event.count)


# Bytes out


cdef void tunnel_send_out(Tunnel *self) noexcept nogil:
    """Encrypt what is framed; many frames share a record, many records a write."""
    cdef size_t length = self.session.out.length
    if length:
        ERR_clear_error()
        if SSL_write(self.ssl, buffer_start(&self.session.out), <int>length) <= 0:
            socket_fail(self.socket, EPROTO)  # no memory: the tunnel's next step finds it
        core.session_taken(self.session, length)
    socket_send(self.socket)


cdef void tunnel_flush(void *of) noexcept nogil:
    tunnel_send_some(<Tunnel *>of)
    tunnel_account(<Tunnel *>of)


cdef void tunnel_send_some(Tunnel *self) noexcept nogil:
    """Frame, encrypt and send as much as the socket takes, within bounds."""
    cdef bint last
    if self.over:
        return
    self.stalled = False
    if self.session == NULL:
        socket_send(self.socket)
        return
    if self.socket.out.length == 0 and self.socket.error == 0:
        core.session_fill(self.session, PULL)
        if not tunnel_events(self):
            return
        tunnel_find_room(self)
        if self.session.out.length == 0:
            if self.refused != NULL:
                tunnel_end_refused(self)
                tunnel_flush_soon(self)
            return
        last = self.session.out.length < PULL and self.refused == NULL
        tunnel_send_out(self)
        if last and self.socket.out.length == 0 and self.socket.error == 0:
            return
    self.stalled = self.socket.out.length != 0
    if self.socket.error:
        turn_task(self.loop, &self.pod.turn, &self.step)
    elif not self.stalled:
        tunnel_flush_soon(self)


cdef void tunnel_find_room(Tunnel *self) noexcept nogil:
    """Frames were made: streams whose END_STREAM is among them may be complete."""
    cdef Stream *stream = self.awaited
    cdef Stream *after
    while stream != NULL:
        after = stream.next_awaited
        if stream_flushed(stream):
            stream_await(stream, False)
            stream_changed(stream)
        stream = after


cdef void tunnel_end_refused(Tunnel *self) noexcept nogil:
    cdef Stream *stream
    while self.refused != NULL:
        stream = self.refused
        self.refused = stream.next_refused
        if not stream.closed:
            stream_reset(stream, NO_ERROR)
        stream_let_go(stream)


# Life


cdef Stream *tunnel_open(Tunnel *self, Fields *fields) noexcept nogil:
    """Send a request; only with vacancies. NULL: it cannot be sent."""
    cdef int32_t id = core.session_request(self.session, fields.array, fields.count, False)
    if id < 0:
        return NULL
    tunnel_flush_soon(self)
    return stream_new(self, id)


cdef void tunnel_announce_end(Tunnel *self) noexcept nogil:
    """Server: ask the peer to open no more streams here (RFC 9113 6.8), then, after a while, insist."""
    if self.session == NULL:
        tunnel_lose(self, DRAINED, b"the agent is stopping")
    elif not self.announced and not self.over:
        self.announced = True
        core.session_shutdown_notice(self.session)
        tunnel_flush_soon(self)
        timer_start(self.loop, &self.grace, GRACE, tunnel_insist, self)


cdef void tunnel_insist(void *of) noexcept nogil:
    cdef Tunnel *self = <Tunnel *>of
    self.retired = True
    core.session_goaway(self.session, NO_ERROR, NULL, 0)
    tunnel_flush_soon(self)
    tunnel_freed_soon(self)


cdef void tunnel_retire(Tunnel *self) noexcept nogil:
    """Client: no new streams; it ends with the last one."""
    self.retired = True
    tunnel_freed_soon(self)


cdef void tunnel_freed(void *of) noexcept nogil:
    """A stream was let go, or the peer allows more."""
    cdef Tunnel *self = <Tunnel *>of
    if self.over:
        return
    if tunnel_idle(self) and tunnel_retired(self):
        tunnel_end_gracefully(self)
    elif self.group != NULL:
        group_freed(self.group, self)


cdef void tunnel_end_gracefully(void *of) noexcept nogil:
    """GOAWAY, close_notify, FIN. Streams that are left end with TUNNEL_LOST."""
    cdef Tunnel *self = <Tunnel *>of
    if self.session != NULL and not self.over:
        core.session_goaway(self.session, NO_ERROR, NULL, 0)
    tunnel_lose(self, TUNNEL_LOST, b"the tunnel was closed")


cdef void tunnel_late(void *of) noexcept nogil:
    cdef Tunnel *self = <Tunnel *>of
    cdef char why[64]
    snprintf(why, sizeof(why), b"no TLS handshake within %g s", self.loop.timers[<int>HANDSHAKE].seconds)
    tunnel_lose(self, TLS_FAILED, why)


cdef void tunnel_ping(void *of) noexcept nogil:
    """RFC 9113 6.7; a peer that does not answer in time is gone, whatever TCP thinks."""
    cdef Tunnel *self = <Tunnel *>of
    cdef double timeout = self.loop.shared.limits.ping_timeout
    cdef char why[64]
    if self.ping_sent and self.loop.now - self.ping_sent >= timeout:
        snprintf(why, sizeof(why), b"no answer to a PING within %g s", timeout)
        tunnel_lose(self, TUNNEL_LOST, why)
        return
    if not self.ping_sent:
        self.pings += 1
        core.session_ping(self.session, <const uint8_t *>&self.pings)
        self.ping_sent = self.loop.now
        tunnel_flush_soon(self)
    timer_start(self.loop, &self.timer, PING, tunnel_ping, self)


cdef void tunnel_lose_explained(Tunnel *self, int reason, const char *detail) noexcept nogil:
    """What an error means at this point of the connection's life."""
    cdef char why[400]
    if reason == HTTP2_PROTOCOL:
        tunnel_lose(self, reason, detail)
        return
    if self.session == NULL:
        snprintf(why, sizeof(why), b"in the handshake: %s", detail)
        tunnel_lose(self, TLS_FAILED, why)
    elif self.group != NULL and not self.heard:
        snprintf(why, sizeof(why), b"after the handshake; maybe our certificate was refused: %s", detail)
        tunnel_lose(self, TLS_FAILED, why)
    else:
        tunnel_lose(self, TUNNEL_LOST, detail)


cdef void tunnel_lose(Tunnel *self, int reason, const char *detail) noexcept nogil:
    """It is over, and its streams with it; what can still be said is said."""
    cdef Stream *stream
    cdef uint32_t i
    cdef bint shaking
    if self.over:
        return
    self.over = True
    tunnel_count(self, self.inbound)
    atomic_add(&self.loop.shared.tunnels, -1, RELAXED)
    timer_stop(&self.timer)
    timer_stop(&self.grace)
    timer_stop(&self.idle)
    task_cancel(&self.step)
    task_cancel(&self.flush)
    task_cancel(&self.freed)
    shaking = self.handshaking
    server_ready(self)
    tunnel_last_words(self)
    while self.refused != NULL:
        stream = self.refused
        self.refused = stream.next_refused
        stream_let_go(stream)
    for i in range(self.streams.size):
        while self.streams.chains[i] != NULL:
            stream = self.streams.chains[i]
            stream_fail(stream, reason, detail)
            stream_await(stream, False)
            stream_unlink(stream)
    if self.group != NULL:
        group_over(self.group, self, reason, detail)
    else:
        server_over(self, shaking, reason, detail)
    fact_quiet(self.loop)
    bury_tunnel_when_free(self)


cdef void bury_tunnel_when_free(Tunnel *self) noexcept nogil:
    """Streams that connections still hold keep it: they look at it, though not at its session."""
    if self.held == 0:
        tunnel_count(self, 0)
        bury(self.loop, &self.corpse, tunnel_dispose, self)


cdef void tunnel_last_words(Tunnel *self) noexcept nogil:
    """GOAWAY and close_notify, as far as the socket takes them. Whatever goes wrong with it, the socket is closed."""
    cdef int i
    if self.session != NULL:
        for i in range(LAST_PULLS):
            if self.socket.out.length or self.socket.error:
                break
            core.session_fill(self.session, PULL)
            core.session_events_done(self.session)
            if self.session.out.length == 0:
                break
            tunnel_send_out(self)
    ERR_clear_error()
    SSL_shutdown(self.ssl)
    if self.socket.error:
        socket_abort(self.socket)
    else:
        socket_linger(self.socket)

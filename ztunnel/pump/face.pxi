# The Python side of the threads: the only part that holds the GIL. Plain values in and out; see _pump.pyi.

cdef enum:
    PASSED_AT_ONCE = 8192    # connections that are only added up, before others have their turn
    WAIT_SECONDS = 2         # for a thread; one that takes longer is waited for no more until it has answered


cdef void fill_bucket(core.Bucket *bucket, rate) except *:
    bucket.tokens = bucket.burst = rate.burst
    bucket.per_second = rate.per_second
    bucket.filled_at = 0


cdef void fill_config(core.Config *config, bint client, settings, limits) except *:
    config.client = client
    config.enable_push = settings.enable_push
    config.initial_window_size = settings.initial_window_size
    config.max_frame_size = settings.max_frame_size
    config.max_header_list_size = settings.max_header_list_size
    config.max_concurrent_streams = settings.max_concurrent_streams
    config.connection_window = settings.connection_window
    config.max_outbound_buffer = limits.max_outbound_buffer
    config.low_water = limits.max_outbound_buffer // 4
    config.max_data_frame = limits.max_data_frame
    config.turn = limits.turn
    config.max_control_backlog = limits.max_control_backlog
    config.max_settings_entries = limits.max_settings_entries
    config.max_continuations = limits.max_continuations
    fill_bucket(&config.resets, limits.resets)
    fill_bucket(&config.pings, limits.pings)
    fill_bucket(&config.settings, limits.settings)
    fill_bucket(&config.empty_frames, limits.empty_frames)


cdef void fill_limits(Limits *self, limits, server, client, http) except *:
    self.descriptors = limits.descriptors
    self.connections = limits.connections
    self.connections_per_pod = limits.connections_per_pod
    self.tunnels_per_pod = limits.tunnels_per_pod
    self.tunnels_per_peer = limits.tunnels_per_peer
    self.handshakes_per_pod = limits.handshakes_per_pod
    self.handshakes_per_peer = limits.handshakes_per_peer
    self.untold_per_peer = limits.untold_per_peer
    self.untold_captured = limits.untold_captured
    fill_bucket(&self.captures, limits.captures)
    fill_bucket(&self.inbound, limits.inbound)
    fill_bucket(&self.inbound_of_peer, limits.inbound_of_peer)
    fill_bucket(&self.handshakes, limits.handshakes)
    fill_bucket(&self.handshakes_of_peer, limits.handshakes_of_peer)
    self.ping_timeout = limits.ping_timeout
    self.streams_accepted = limits.streams_accepted
    self.streams_opened = limits.streams_opened
    self.tunnels_per_key = limits.tunnels_per_key
    self.busy_backlog = limits.busy_backlog
    self.attempts = limits.attempts
    self.awake = limits.awake
    self.socket_backlog = limits.socket_backlog
    self.stream_window = limits.stream_window
    self.stream_window_max = limits.stream_window_max
    self.window_budget = limits.window_budget
    self.window_budget_per_pod = limits.window_budget_per_pod
    self.window_budget_of_all = limits.window_budget_of_all
    self.buffered_per_pod = limits.buffered_per_pod
    self.buffered = limits.buffered
    self.stream_buffer = limits.stream_buffer
    self.seconds[<int>DECISION] = limits.decision_timeout
    self.seconds[<int>CONNECT] = limits.connect_timeout
    self.seconds[<int>HANDSHAKE] = limits.handshake_timeout
    self.seconds[<int>RESPONSE] = limits.response_timeout
    self.seconds[<int>GRACE] = limits.goaway_grace
    self.seconds[<int>PING] = limits.ping_interval
    self.seconds[<int>IDLE] = limits.idle_timeout
    self.seconds[<int>LINGER] = 1.0
    self.seconds[<int>PAUSE] = 0.2
    self.seconds[<int>REFILL] = 0.01
    self.seconds[<int>REPORT] = 0.005
    self.seconds[<int>LOOK] = 0.01
    self.seconds[<int>ANSWER] = 0.001
    self.seconds[<int>STALE] = 1.0
    self.seconds[<int>PATIENCE] = 0.02
    self.seconds[<int>TELL] = 0.05
    self.seconds[<int>TALLY] = 0.05
    fill_config(&self.server, False, server, http)
    fill_config(&self.client, True, client, http)


cdef void fill_maps(Maps *self, maps) except *:
    """ValueError: the kernel side has other layouts, and would write past ours."""
    cdef tuple sizes = (sizeof(CapturedKey), sizeof(Dialled), sizeof(uint64_t), sizeof(Announced))
    if maps.sizes != sizes:
        raise ValueError(f"entries of the kernel side's maps have {maps.sizes} bytes, not {sizes}")
    self.captured, self.announced, self.given = maps.captured, maps.announced, True


cdef int bell() except -1:
    cdef int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    if fd < 0:
        raise OSError(errno, "no eventfd for the pump")
    return fd


cdef object text_of(Cursor *record):
    cdef size_t length
    cdef const char *found = cursor_bytes(record, &length)
    return found[:length].decode("utf-8", "replace")


cdef bytes bytes_of(Cursor *record):
    cdef size_t length
    cdef const char *found = cursor_bytes(record, &length)
    return found[:length]


cdef void add_passed(dict passed, Cursor *record) except *:
    """To what is alike: (pod, alternative, peer) -> [connections, sent, received, port and four numbers of each]."""
    cdef uint64_t each[5]
    cdef list sums
    cursor_number(record)
    pod, alternative = cursor_number(record), cursor_number(record)
    peer = bytes_of(record)
    memcpy(each, record.at, sizeof(each))
    sums = passed.get((pod, alternative, peer))
    if sums is None:
        sums = passed[(pod, alternative, peer)] = [0, 0, 0, bytearray()]
    sums[0] += 1
    sums[1] += each[1]
    sums[2] += each[2]
    sums[3] += (<const char *>each)[:sizeof(each)]


cdef object address_of(Cursor *record):
    ip = text_of(record)
    return ip, cursor_number(record)


cdef list fields_of(Cursor *record):
    cdef uint64_t count = cursor_number(record)
    cdef size_t length
    cdef const uint8_t *at = <const uint8_t *>cursor_bytes(record, &length)
    cdef uint32_t lengths[2]
    cdef list fields = []
    while count:
        memcpy(lengths, at, sizeof(lengths))
        at += sizeof(lengths)
        fields.append((
            (<const char *>at)[:lengths[0]].decode("latin-1"),
            (<const char *>at + lengths[0])[:lengths[1]].decode("latin-1"),
        ))
        at += lengths[0] + lengths[1]
        count -= 1
    return fields


cdef void put_bytes(Batch *batch, bytes data) except *:
    batch_bytes(batch, PyBytes_AS_STRING(data), len(data))


cdef void put_address(Batch *batch, str ip, int port) except *:
    cdef Address address
    if address_parse(&address, ip.encode(), port) != 0:
        raise ValueError(f"{ip!r} is not an IP address")
    batch_put(batch, &address, sizeof(address))


cdef void put_fields(Batch *batch, headers) except *:
    batch_number(batch, len(headers))
    for name, value in headers:
        put_bytes(batch, name.encode("latin-1"))
        put_bytes(batch, value.encode("latin-1"))


@cython.no_gc  # it refers to numbers only; cleared before the end, it could not free its meters
cdef class Pump:
    cdef Shared *shared
    cdef Loop **loops
    cdef Batch orders
    cdef Buffer taken        # facts
    cdef Cursor rest         # of them
    cdef dict meters         # id -> Meter *, as a number
    cdef int64_t home
    cdef uint64_t home_inode

    def __cinit__(self, *, limits, server, client, http, statuses, int threads, bint accelerated, maps):
        cdef int i
        self.meters = {}
        if wire_prepare() != 0:
            raise MemoryError
        self.shared = <Shared *>make(sizeof(Shared))
        self.shared.threads = threads
        self.shared.accelerated = accelerated
        if maps is not None:
            fill_maps(&self.shared.maps, maps)
        pthread_mutex_init(&self.shared.facts.lock, NULL)
        if inquiries_new(&self.shared.inquiries) != 0:
            raise OSError(errno, "no random numbers for the pump")
        self.shared.facts.bell = -1
        self.loops = self.shared.loops = <Loop **>make(threads * sizeof(Loop *))
        fill_limits(&self.shared.limits, limits, server, client, http)
        for reason, status in statuses.items():
            self.shared.status[<int>reason] = status
        self.shared.facts.bell = bell()
        self.home = netns_home(&self.home_inode)
        if self.home < 0:
            raise OSError(errno, "the agent's own network namespace")
        for i in range(threads):
            self.loops[i] = loop_new(self.shared, i, bell())
        for i in range(threads):
            self._begin(self.loops[i])

    cdef void _begin(self, Loop *loop) except *:
        """Without signals: they are for the thread that Python runs on."""
        cdef sigset_t all_, before
        cdef char name[16]
        cdef int failed
        sigfillset(&all_)
        pthread_sigmask(SIG_SETMASK, &all_, &before)
        failed = pthread_create(&loop.thread, NULL, loop_run, loop)
        pthread_sigmask(SIG_SETMASK, &before, NULL)
        if failed:
            raise OSError(failed, "no thread for the pump")
        loop.running = True
        snprintf(name, sizeof(name), b"pump-%d", <int>loop.index)
        pthread_setname_np(loop.thread, name)

    def __dealloc__(self):
        cdef int64_t i
        cdef size_t pointer
        if self.shared == NULL:
            return
        self._stop()
        for i in range(self.shared.threads):
            if self.loops[i] != NULL:
                loop_free(self.loops[i])
        free(self.loops)
        for pointer in self.meters.values():
            free(<void *>pointer)
        if self.home > 0:
            close_(<int>self.home)
        if self.shared.facts.bell >= 0:
            close_(self.shared.facts.bell)
        buffer_free(&self.shared.facts.waiting)
        buffer_free(&self.orders.records)
        buffer_free(&self.taken)
        pthread_mutex_destroy(&self.shared.facts.lock)
        inquiries_free(&self.shared.inquiries)
        free(self.shared)

    def fileno(self):
        return self.shared.facts.bell

    @property
    def threads(self):
        return self.shared.threads

    @property
    def tunnels(self):
        return atomic_get(&self.shared.tunnels, RELAXED)

    @property
    def connections(self):
        return atomic_get(&self.shared.connections, RELAXED)

    @property
    def held(self):
        """(descriptors, bytes in buffers, bytes of windows beyond their first size)"""
        return (
            atomic_get(&self.shared.descriptors, RELAXED), atomic_get(&self.shared.buffered, RELAXED),
            atomic_get(&self.shared.growth, RELAXED),
        )

    @property
    def refused(self):
        cdef int reason
        cdef dict refused = {}
        for reason in range(REASONS):
            count = atomic_get(&self.shared.refused[reason], RELAXED)
            if count:
                refused[reason] = count
        return refused

    def counts(self):
        cdef Meter *meter
        cdef size_t pointer
        cdef dict counts = {}
        for number, pointer in self.meters.items():
            meter = <Meter *>pointer
            counts[number] = (atomic_get64(&meter.sent, RELAXED), atomic_get64(&meter.received, RELAXED))
        return counts

    # Facts

    def facts(self, int most):
        cdef Cursor record
        cdef list facts = []
        cdef dict passed = {}
        cdef uint64_t one = 1, kind
        cdef int told = 0
        if self.rest.at == self.rest.end:
            mail_take(&self.shared.facts, &self.taken)
            self.rest.at = buffer_start(&self.taken)
            self.rest.end = self.rest.at + self.taken.length
        while len(facts) < most and told < PASSED_AT_ONCE and cursor_record(&self.rest, &record):
            memcpy(&kind, record.at, sizeof(kind))
            if kind == FACT_PASSED:
                add_passed(passed, &record)
                told += 1
            else:
                facts.append(self._fact(&record))
        facts[:0] = [  # before their pod is gone
            ("passed", pod, alternative, peer.decode(), count, sent, received, bytes(each))
            for (pod, alternative, peer), (count, sent, received, each) in passed.items()
        ]
        if self.rest.at != self.rest.end:
            write_(self.shared.facts.bell, &one, sizeof(one))
        else:
            buffer_free(&self.taken)
            self.rest.at = self.rest.end = NULL
        return facts

    cdef tuple _fact(self, Cursor *record):
        cdef uint64_t kind = cursor_number(record)
        if kind == FACT_ACCEPTED:
            number, pod = cursor_number(record), cursor_number(record)
            self.meters[number] = cursor_number(record)
            captured = cursor_number(record)
            return (
                "captured" if captured else "plaintext", number, pod, address_of(record), address_of(record),
                bytes_of(record),
            )
        if kind == FACT_OFFERED:
            number, pod = cursor_number(record), cursor_number(record)
            self.meters[number] = cursor_number(record)
            return (
                "offered", number, pod, address_of(record), address_of(record), text_of(record), fields_of(record),
                bytes_of(record),
            )
        if kind == FACT_OPENED:
            return "opened", cursor_number(record), text_of(record), address_of(record)
        if kind == FACT_ENDED:
            return self._ended(record)
        if kind == FACT_BEGUN:
            number, pod = cursor_number(record), cursor_number(record)
            self.meters[number] = cursor_number(record)
            alternative, port = cursor_number(record), cursor_number(record)
            return "begun", number, pod, alternative, port, text_of(record), cursor_number(record)
        if kind == FACT_TURNED_AWAY:
            return "turned away", cursor_number(record), text_of(record)
        if kind == FACT_LOG:
            return "log", text_of(record)
        if kind == FACT_LAPSED:
            return "lapsed", cursor_number(record)
        if kind == FACT_SPENT:
            return "spent", cursor_number(record), cursor_number(record)
        if kind == FACT_DEAF:
            return "deaf", cursor_number(record)
        if kind == FACT_WITHDRAW:
            return "withdraw", cursor_number(record)
        if kind == FACT_POD_GONE:
            return "pod gone", cursor_number(record), cursor_number(record)
        return ("quiet",)

    cdef tuple _ended(self, Cursor *record):
        cdef uint64_t number = cursor_number(record)
        cdef size_t pointer = self.meters.pop(number)
        cdef Meter *meter = <Meter *>pointer
        cdef uint64_t sent = atomic_get64(&meter.sent, RELAXED)
        cdef uint64_t received = atomic_get64(&meter.received, RELAXED)
        free(meter)
        return "ended", number, cursor_number(record), text_of(record), sent, received

    # Orders

    cdef Loop *_loop(self, uint64_t number) noexcept:
        return self.loops[number % self.shared.threads]

    cdef void _send(self, Loop *loop) noexcept:
        batch_end(&self.orders)
        mail_send(&loop.orders, &self.orders)

    cdef bint _wait(self, Loop *loop, bint however_long=False) noexcept:
        """Until the thread has carried out what it was sent. False: it has not, and is stuck; it will when it goes on,
        before anything that it is sent later."""
        cdef uint64_t ticket, one = 1
        cdef timespec until
        cdef int failed = 0
        with nogil:
            clock_gettime(CLOCK_MONOTONIC, &until)
            until.tv_sec += WAIT_SECONDS
            pthread_mutex_lock(&loop.lock)
            loop.asked += 1
            ticket = loop.asked
            write_(loop.orders.bell, &one, sizeof(one))
            while loop.running and loop.answered < ticket:
                if however_long:
                    pthread_cond_wait(&loop.answer, &loop.lock)
                elif failed or loop.answered < loop.missed:
                    loop.missed = ticket
                    break
                else:
                    failed = pthread_cond_clockwait(&loop.answer, &loop.lock, CLOCK_MONOTONIC, &until)
            failed = loop.running and loop.answered < ticket
            pthread_mutex_unlock(&loop.lock)
        return not failed

    def fail(self, uint64_t number, int reason, str detail, bint close):
        batch_begin(&self.orders, ORDER_FAIL)
        batch_number(&self.orders, number)
        batch_number(&self.orders, reason)
        put_bytes(&self.orders, detail.encode("utf-8", "replace"))
        batch_number(&self.orders, close)
        self._send(self._loop(number))

    def plain(self, uint64_t number, int fd, uint64_t cookie, str ip, int port, headers):
        cdef Batch *orders = &self.orders
        try:
            batch_begin(orders, ORDER_PLAIN)
            batch_number(orders, number)
            batch_number(orders, fd)
            batch_number(orders, cookie)
            put_address(orders, ip, port)
            put_fields(orders, headers)
        except BaseException:
            buffer_drop(&orders.records, orders.records.length)
            raise
        self._send(self._loop(number))

    def tunnel(self, uint64_t number, bytes key, bytes source, bytes expected, str ip, int port, str authority,
               headers):
        cdef Batch *orders = &self.orders
        try:
            batch_begin(orders, ORDER_TUNNEL)
            batch_number(orders, number)
            put_address(orders, ip, port)
            put_bytes(orders, key)
            put_bytes(orders, source)
            put_bytes(orders, expected)
            put_bytes(orders, authority.encode("latin-1"))
            put_fields(orders, headers)
        except BaseException:
            buffer_drop(&orders.records, orders.records.length)
            raise
        self._send(self._loop(number))

    def stand(self, uint64_t number, bytes kind, list alternatives):
        cdef Batch *orders = &self.orders
        cdef Batch piece
        cdef int64_t i
        memset(&piece, 0, sizeof(piece))
        try:
            for i in range(self.shared.threads):
                batch_begin(orders, ORDER_STAND)
                batch_number(orders, number)
                put_bytes(orders, kind)
                batch_number(orders, atomic_get64(&self.shared.generation, RELAXED))
                batch_number(orders, len(alternatives))
                for alternative, upto, tunnel, last_hop, ip, port, *rest, headers in alternatives:
                    batch_number(orders, alternative)
                    batch_number(orders, upto)
                    batch_number(orders, tunnel)
                    batch_number(orders, last_hop)
                    put_address(&piece if tunnel else orders, ip, port)
                    for text in rest:
                        put_bytes(&piece, text)
                    put_fields(&piece, headers)
                    batch_bytes(orders, buffer_start(&piece.records), piece.records.length)
                    buffer_drop(&piece.records, piece.records.length)
                self._send(self.loops[i])
        except BaseException:
            buffer_drop(&orders.records, orders.records.length)
            raise
        finally:
            buffer_free(&piece.records)

    def recall(self, uint64_t number, bytes kind):
        cdef int64_t i
        for i in range(self.shared.threads):
            batch_begin(&self.orders, ORDER_RECALL)
            batch_number(&self.orders, number)
            put_bytes(&self.orders, kind)
            self._send(self.loops[i])

    def lapse(self, uint64_t number, uint64_t fence):
        cdef int64_t i
        if number == 0:
            atomic_set64(&self.shared.generation, self.shared.generation + 1, RELAXED)
        for i in range(self.shared.threads):
            self._of_pod(self.loops[i], ORDER_LAPSE, number, fence)

    def socket(self, int netns, bint six, str bind):
        """A tuned socket in a netns, bound to an address without taking a port now: connect() then chooses one that is
        free towards its destination, one in TIME_WAIT too. (descriptor, socket cookie); OSError."""
        cdef Address address
        cdef uint64_t cookie = 0
        cdef socklen_t size = sizeof(cookie)
        cdef int fd = netns_socket(netns, <int>self.home, self.home_inode, AF_INET6 if six else AF_INET)
        cdef int code
        if fd < 0:
            raise OSError(errno, f"no socket in the pod's netns: {error_text(errno).decode()}")
        tune(fd)
        if bind is not None:
            set_option(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            if address_parse(&address, bind.encode(), 0) != 0:
                code = EINVAL
            else:
                code = errno if bind_(fd, &address.any, address_size(&address)) != 0 else 0
            if code:
                close_(fd)
                raise OSError(code, f"bind to {bind}: {error_text(code).decode()}")
        getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size)
        return fd, cookie

    # Pods

    def pod(self, uint64_t number, uint64_t life, str name, str trust_domain, int netns, uint64_t cookie, listeners):
        """Takes the descriptors; of a pod that is known, the earlier ones are closed."""
        cdef Batch *orders = &self.orders
        cdef bytes called = name.encode(), trusting = trust_domain.encode()
        cdef Loop *home = self._loop(number)
        cdef int64_t i
        cdef bint done = True
        cdef Common *common = common_new(
            self.shared.threads, number, life, copy_text(called, len(called)), copy_text(trusting, len(trusting)), netns,
            cookie)
        for i in range(self.shared.threads):
            batch_begin(orders, ORDER_POD)
            batch_number(orders, <uint64_t>common)
            for fd in listeners:
                batch_number(orders, <uint64_t><int64_t>(-1 if fd is None or self.loops[i] != home else fd))
            self._send(self.loops[i])
        for i in range(self.shared.threads):
            done = self._wait(self.loops[i]) and done
        return done

    cdef void _of_pod(self, Loop *loop, Order kind, uint64_t number, uint64_t value) noexcept:
        batch_begin(&self.orders, kind)
        batch_number(&self.orders, number)
        batch_number(&self.orders, value)
        self._send(loop)

    cdef bint _everywhere(self, Order kind, uint64_t number, uint64_t value) noexcept:
        """Whether it is done. At home first: once that has ended something, it hands over nothing more of it."""
        cdef Loop *home = self._loop(number)
        cdef int64_t i
        cdef bint done
        self._of_pod(home, kind, number, value)
        done = self._wait(home)
        for i in range(self.shared.threads):
            if self.loops[i] != home:
                self._of_pod(self.loops[i], kind, number, value)
        for i in range(self.shared.threads):
            if self.loops[i] != home:
                done = self._wait(self.loops[i]) and done
        return done

    def start(self, uint64_t number):
        self._of_pod(self._loop(number), ORDER_START, number, 0)

    def credentials(self, uint64_t number, credentials):
        """ValueError: not usable."""
        cdef Contexts *contexts = contexts_new(credentials)
        cdef int64_t i
        contexts.holders = self.shared.threads
        for i in range(self.shared.threads):
            self._of_pod(self.loops[i], ORDER_CREDENTIALS, number, <uint64_t>contexts)

    def unlisten(self, uint64_t number):
        return self._everywhere(ORDER_UNLISTEN, number, 0)

    def retire(self, uint64_t number):
        cdef int64_t i
        for i in range(self.shared.threads):
            self._of_pod(self.loops[i], ORDER_RETIRE, number, 0)

    def drop(self, uint64_t number, int reason):
        return self._everywhere(ORDER_DROP, number, reason)

    # All

    def pause(self):
        cdef int64_t i
        cdef bint done = True
        for i in range(self.shared.threads):
            batch_begin(&self.orders, ORDER_PAUSE)
            self._send(self.loops[i])
            done = self._wait(self.loops[i]) and done
        return done

    def pulses(self):
        """(steps, has work) of each thread that runs. From any thread of Python's."""
        cdef list pulses = []
        cdef uint64_t steps
        cdef int64_t i
        for i in range(self.shared.threads):
            if self.loops[i].running:
                steps = atomic_get64(&self.loops[i].steps, RELAXED)
                pulses.append((steps, bool(loop_has_work(self.loops[i], steps))))
        return pulses

    def census(self):
        """(tunnels, groups, peers); a tunnel is (pod, server, ready, retired, streams, backlog, (ip, port))."""
        cdef Census census
        cdef list tunnels = []
        cdef int64_t i
        cdef size_t j
        cdef char ip[ADDRESS_TEXT]
        memset(&census, 0, sizeof(census))
        census.room = max(atomic_get(&self.shared.tunnels, RELAXED) + 64, 0)
        census.views = <View *>make(census.room * sizeof(View))
        for i in range(self.shared.threads):
            batch_begin(&self.orders, ORDER_CENSUS)
            batch_number(&self.orders, <uint64_t>&census)
            self._send(self.loops[i])
            self._wait(self.loops[i], True)
        for j in range(min(census.count, census.room)):
            address_ip(&census.views[j].address, ip)
            tunnels.append((
                census.views[j].pod, bool(census.views[j].server), bool(census.views[j].ready),
                bool(census.views[j].retired), census.views[j].streams, census.views[j].backlog,
                (ip.decode(), address_port(&census.views[j].address)),
            ))
        free(census.views)
        return tunnels, census.groups, census.peers

    cdef void _stop(self) noexcept:
        cdef int64_t i
        cdef Loop *loop
        for i in range(self.shared.threads):  # before the first one stops: they hand over nothing any more
            if self.loops[i] != NULL and self.loops[i].running:
                batch_begin(&self.orders, ORDER_CLEAR)
                self._send(self.loops[i])
                self._wait(self.loops[i], True)
        for i in range(self.shared.threads):
            loop = self.loops[i]
            if loop == NULL or not loop.running:
                continue
            batch_begin(&self.orders, ORDER_STOP)
            self._send(loop)
            with nogil:
                pthread_join(loop.thread, NULL)
            loop.running = False

    def stop(self):
        """Ends what is left and the threads; facts can still be taken."""
        self._stop()

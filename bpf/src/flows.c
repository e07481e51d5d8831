/* The life of a direct flow, in sockops programs: recorded before the SYN, attested on both ends, told when it ends. */

/* BBR paces what it sends, timer by timer, to spare a network's queues. Between pods of one node there are none, nor on a
 * pod's loopback, and an idle core would wait. For streams only: where nothing holds it back, who writes single bytes sends each
 * in a packet of its own, and if nobody reads them they take many times the memory. */
static __always_inline void spare_pacing(struct bpf_sock_ops *s) {
  char name[16] = {}, reno[5] = "reno";
  if (s->bytes_acked < (u64)s->data_segs_out * STREAM_SEGMENT) return;
  if (bpf_getsockopt(s, IPPROTO_TCP, TCP_CONGESTION, name, sizeof(name))) return;
  if (name[0] == 'b' && name[1] == 'b' && name[2] == 'r')
    bpf_setsockopt(s, IPPROTO_TCP, TCP_CONGESTION, reno, sizeof(reno));
}

static __always_inline int record(struct bpf_sock_ops *s, struct tuple *key, struct asked *asked, u64 cookie) {
  struct direct flow = {};
  flow.holder = cookie;
  flow.source = bpf_get_netns_cookie(s);
  flow.opened = bpf_ktime_get_ns();
  flow.generation = asked->generation;
  flow.accelerate = asked->accelerate;
  MOVE6(flow.asked, asked->ip);
  flow.asked_port = asked->port;
  int error = directs.insert(key, &flow);
  if (!error) return 1;
  /* A pod that dials from another's address must not hide that one's flow; the other may replace what it finds there */
  int there = error == -EEXIST;
  if (there && is_own(flow.source, key->remote) && !directs.update(key, &flow)) return 1;
  refused(key, there ? MISMATCH : MAP_FULL);
  return 0;                                                /* nobody can sign what is not recorded */
}

/* Nothing has been sent yet but the SYN, and nothing will: the socket is taken off the wire before the handshake's last
 * packet, also for a writer that waits for connect() already, and what is written meets an error. */
static __always_inline void shut(struct bpf_sock_ops *s, struct bpf_sock *sk, const struct tuple *own) {
  char none[3] = "lo";
  bpf_setsockopt(s, SOL_SOCKET, SO_BINDTODEVICE, none, sizeof(none));
  struct lane *lane = lanes.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (lane) lane->state = LANE_SHUT;
  accelerated.sock_hash_update(s, (struct tuple *)own, BPF_ANY);
}

/* The pod reads with splice() or the like: bytes went that no receive accounts for. Told by a connection that the other
 * side ended first: its last receive has returned. The end of the stream counts as a byte. */
static __always_inline void learn(struct bpf_sock_ops *s, const struct meter *meter) {
  u64 netns = bpf_get_netns_cookie(s);
  u32 one = 1;
  if (meter && s->args[0] == BPF_TCP_LAST_ACK && (int)unaccounted(meter) > 1) splicers.update(&netns, &one);
}

static __always_inline int wants_meters(const struct direct *flow) {
  u32 zero = 0;
  struct settings *config = settings.lookup(&zero);
  return flow->accelerate && config && config->accelerate;
}

static __always_inline void astray(struct bpf_sock_ops *s, struct bpf_sock *sk, struct asked *asked, u64 cookie) {
  struct tuple key = asked->key, own = {};
  struct direct unknown = {};
  own.netns = bpf_get_netns_cookie(s);
  from_server(s, &own);
  unknown.source = own.netns;
  unknown.opened = bpf_ktime_get_ns();
  unknown.generation = asked->generation;
  count(MISMATCH);
  tell(&key, &unknown, cookie, HAPPENED_MISMATCH, 0);
  shut(s, sk, &own);
}

/* The agent finds it when it looks, unless policy has changed since the SYN was judged: then it may have looked already. */
static __always_inline void reached(struct bpf_sock_ops *s, struct bpf_sock *sk, struct asked *asked) {
  u32 zero = 0;
  struct tuple key = asked->key;
  u64 cookie = bpf_get_socket_cookie(s);
  struct direct *flow = directs.lookup(&key);
  if (!flow || flow->holder != cookie || flow->admitted != cookie) {
    astray(s, sk, asked, cookie);
    return;
  }
  flow->state |= DIRECT_ESTABLISHED;
  count(OPENED_FLOWS);
  struct settings *config = settings.lookup(&zero);
  if (config && config->generation != flow->generation) {
    flow->state |= DIRECT_TOLD;
    tell(&key, flow, cookie, HAPPENED_OPENED, 0);
  }
  watch_bytes(s);
}

/* The destination's end goes first: what it has moved is not forgotten. */
static __always_inline void served(struct bpf_sock_ops *s, const struct meter *meter) {
  struct tuple key = meter->flow;
  struct direct *flow = directs.lookup(&key);
  learn(s, meter);
  if (!flow || flow->server != meter->own) return;
  flow->sent = meter->bytes;
  flow->server = 0;
}

/* Bytes of a direct flow were acknowledged to one of its ends. Most connections are one request and its answer, and are
 * gone by now: whoever sends a second time is given a meter. Once both ends have one and it is decided about pacing, this is
 * not called any more. */
static __always_inline void flow_progressed(struct bpf_sock_ops *s, struct bpf_sock *sk, const struct asked *asked) {
  struct tuple key = {};
  u64 acked = s->bytes_acked, received = s->bytes_received, pointer = (u64)sk;
  if (asked) {
    key = asked->key;
  } else {
    key.netns = bpf_get_netns_cookie(s);
    from_server(s, &key);
  }
  struct direct *flow = directs.lookup(&key);
  if (!flow) return;
  u64 sent = asked ? acked - !!acked : received, got = asked ? received : acked; /* the SYN counts as one */
  if (sent > flow->sent) flow->sent = sent;                /* a meter may have known of more */
  if (got > flow->received) flow->received = got;
  if (is_metered(s)) {
    if (acked >= STREAM && flow->client && flow->server) leave_bytes(s);
  } else if (s->data_segs_out > 1 && wants_meters(flow) && measure(s, sk, &key)) {
    if (asked) flow->client = pointer;
    else flow->server = pointer;
    watch_nudges(s);
  }
  if (acked >= STREAM) spare_pacing(s);
}

static __always_inline void progressed(struct bpf_sock_ops *s) {
  if (s->state != BPF_TCP_ESTABLISHED && s->state != BPF_TCP_CLOSE_WAIT) return; /* the end is told by parted() */
  struct bpf_sock *sk = s->sk;
  if (!sk) return;
  struct asked *asked = sockets.sk_storage_get(sk, 0, 0);
  if (!asked || asked->kind == DIRECT) {
    flow_progressed(s, sk, asked);
  } else if (s->bytes_acked >= STREAM) {                   /* of a leg nothing else is wanted */
    leave_bytes(s);
    spare_pacing(s);
  }
}

/* A packet with a TCP option that the kernel does not know: the agent's nudge (bpf/nudge.py). Setting SO_RCVLOWAT to what
 * it is has TCP wake who waits for the socket, if there is something to read. */
static __always_inline void nudged(struct bpf_sock_ops *s) {
  struct bpf_sock *sk = s->sk;
  u32 *needs_tcp = sk ? options.sk_storage_get(sk, 0, 0) : 0;
  int one = 1;
  if (!needs_tcp || !*needs_tcp) bpf_setsockopt(s, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one));
}

/* One that the agent has not found is told together with all others like it; 0: it is to be told by itself. */
static __always_inline int enter(const struct tuple *key, const struct direct *flow) {
  u32 zero = 0;
  struct attention *wanted = attention.lookup(&zero);
  if (!wanted || wanted->each || flow->opened <= wanted->listed || flow->state & DIRECT_TOLD) return 0;
  struct entry entry = {};
  entry.source = flow->source;
  entry.destination = key->netns;
  MOVE6(entry.client, key->remote);
  MOVE6(entry.server, key->local);
  MOVE6(entry.asked, flow->asked);
  entry.port = key->local_port;
  entry.asked_port = flow->asked_port;
  entry.page = wanted->page;
  struct tally *tally = ledger.lookup(&entry);
  if (!tally) {
    struct tally none = {};
    ledger.insert(&entry, &none);
    tally = ledger.lookup(&entry);
  }
  if (!tally) return 0;
  __sync_fetch_and_add(&tally->flows, 1);
  __sync_fetch_and_add(&tally->sent, flow->sent);
  __sync_fetch_and_add(&tally->received, flow->received);
  return 1;
}

/* TCP counts SYN and FIN as a byte each; the state that it comes from tells which FINs there were. */
static __always_inline void parted(struct bpf_sock_ops *s, struct bpf_sock *sk, struct tuple *key, u64 cookie) {
  struct direct *flow = directs.lookup(key);
  if (!flow || flow->holder != cookie) return;
  if (flow->state & DIRECT_ESTABLISHED) {
    u32 from = s->args[0];
    u64 ours = 1 + (from == BPF_TCP_FIN_WAIT2 || from == BPF_TCP_CLOSING || from == BPF_TCP_LAST_ACK);
    u64 theirs = from == BPF_TCP_FIN_WAIT2 || from == BPF_TCP_CLOSING || from == BPF_TCP_LAST_ACK || from == BPF_TCP_CLOSE_WAIT;
    u64 sent = s->bytes_acked, received = s->bytes_received, pointer = (u64)sk;
    sent = sent > ours ? sent - ours : 0;
    received = received > theirs ? received - theirs : 0;
    struct lane *lane = lanes.sk_storage_get(sk, 0, 0);
    struct meter *meter = is_metered(s) ? consumed.lookup(&pointer) : 0;
    u64 moved = (lane ? lane->sent : 0), got = (meter ? meter->moved : 0);
    flow->sent = sent + moved;
    flow->received = received + got;
    learn(s, meter);
    flow->state &= ~DIRECT_ESTABLISHED;                    /* who lists it from here on hears of its end */
    if (!enter(key, flow)) tell(key, flow, cookie, HAPPENED_CLOSED, moved || got);
  }
  directs.delete(key);
}

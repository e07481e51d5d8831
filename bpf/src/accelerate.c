/* Acceleration: bytes go from socket to socket, past TCP. What sends is a lane, what reads has a meter.
 *
 * A socket in the sockhash is not quite a TCP socket any more: a receive that waits may return EAGAIN, splice() does not see
 * what was redirected, MSG_WAITALL returns early. So a direct flow begins as plain TCP, and is promoted (promote.c) when both of
 * its ends have shown that they never wait in a receive. A reader that does so later is left to TCP from then on.
 *
 * Order: a lane opens when the reader has had all that TCP was given. That is exact: both ends count the same sequence
 * numbers, the writer's is under the lock that this program runs under, and redirected bytes have none. Nothing goes by
 * TCP while the lane is open. When it closes, readers drain what was redirected before they look at TCP's queue; it opens
 * again under the same condition.
 *
 * Memory: what is unread, message overhead included, is bounded by BUDGET. Receives are counted after the fact, so what
 * is taken for unread is never less than what is.
 *
 * Loopback legs between application and agent are promoted like direct flows (legs.c). */

/* From now on. What TCP has received until now may not have been read: the first receive puts that right. 0: there is no room, or the pod reads past receive calls. */
static __always_inline int measure(struct bpf_sock_ops *s, struct bpf_sock *sk, const struct tuple *flow) {
  u64 pointer = (u64)sk, netns = bpf_get_netns_cookie(s);
  struct meter fresh = {};
  u32 *needs_tcp = options.sk_storage_get(sk, 0, 0);
  if ((needs_tcp && *needs_tcp) || splicers.lookup(&netns)) return 0;
  fresh.flow = *flow;
  fresh.own = pointer;
  fresh.bytes = s->bytes_received;
  fresh.first = s->rcv_nxt - (u32)fresh.bytes;
  return !consumed.update(&pointer, &fresh);
}

static __always_inline int opens(struct bpf_sock *own, struct lane *lane, const struct meter *meter) {
  u32 written = 0, copied = 0;
  if (meter->receives == lane->after) return 0;            /* it may still wait in a receive that knows of TCP only */
  if (!read_written(lane->own, &written) || !read_copied(lane->reader, &copied) || written != copied) return 0;
  u32 *needs_tcp = options.sk_storage_get(own, 0, 0);
  if (needs_tcp && *needs_tcp) return 0;
  lane->by_tcp = copied - meter->first;
  lane->state = LANE_OPEN;
  return 1;
}

/* 0: the reader is too far behind, or has read more than it was sent, which nobody can explain. */
static __always_inline int affords(struct lane *lane, struct meter *meter, u32 size) {
  u32 read = (u32)meter->bytes - lane->by_tcp;             /* of what was redirected; modulo 2^32, as sequence numbers are */
  if ((int)(read - (u32)lane->sent) > 0) {
    meter->native = 1;
    return 0;
  }
  if ((int)(read - (u32)lane->mark) >= 0) {                /* all that was charged before the mark has been read */
    lane->charged -= lane->before;
    lane->before = lane->charged;
    lane->mark = lane->sent;
  }
  return lane->charged + size + OVERHEAD <= BUDGET;
}

/* A direct flow or a loopback leg: no key names both, since a pod's connection to itself is never direct. */
static __always_inline struct direct *flow_of(struct tuple *key) {
  struct direct *flow = directs.lookup(key);
  return flow ? flow : legs.lookup(key);
}

/* What this reader does needs TCP, for good. Of a promoted flow the agent is told. */
static __always_inline void bar(struct meter *meter) {
  struct tuple key = meter->flow;
  if (meter->native) return;
  meter->native = 1;
  struct direct *flow = flow_of(&key);
  if (!flow || !(flow->state & DIRECT_READY)) return;
  tell(&key, flow, flow->holder, HAPPENED_BARRED, 0);
}

/* Bytes will arrive by TCP while redirected ones are unread. Each arrival wakes the reader, but none does when it has read
 * what was redirected: the receive that finds that out is short, which an edge-triggered reader may take for the end of
 * all. received() tells the agent then. */
static __always_inline void fall_behind(struct lane *lane) {
  u64 sk = lane->reader;
  struct meter *meter = consumed.lookup(&sk);
  if (!meter || (u32)meter->bytes - lane->by_tcp == (u32)lane->sent) return;
  meter->by_tcp = lane->by_tcp;
  meter->behind = 1;
}

int message(struct sk_msg_md *m) {
  u32 zero = 0, size = m->size;
  struct bpf_sock *own = m->sk;
  struct lane *lane = own ? lanes.sk_storage_get(own, 0, 0) : 0;
  if (!lane) return SK_PASS;
  if (lane->state == LANE_SHUT) return SK_DROP;
  struct settings *config = settings.lookup(&zero);
  if (!config || !config->accelerate) goto native;
  struct tuple peer = {};
  peer.netns = lane->peer;
  if (m->family == AF_INET) {
    MAP4(peer.local, m->remote_ip4);
    MAP4(peer.remote, m->local_ip4);
  } else {
    COPY6(peer.local, m->remote_ip6);
    COPY6(peer.remote, m->local_ip6);
  }
  peer.local_port = bpf_ntohl(m->remote_port);
  peer.remote_port = m->local_port;
  u64 sk = lane->reader;
  struct meter *meter = consumed.lookup(&sk);
  if (!meter || meter->native) goto native;
  if (lane->state == LANE_NATIVE && !opens(own, lane, meter)) return SK_PASS;
  if (!affords(lane, meter, size)) {
    if (++lane->overruns > OVERRUNS) bar(meter);
    goto native;
  }
  if (accelerated.msg_redirect_hash(m, &peer, BPF_F_INGRESS) != SK_PASS) goto native; /* not yet, or not any more */
  lane->charged += size + OVERHEAD;
  lane->sent += size;
  __sync_fetch_and_add(&meter->moved, size);
  return SK_PASS;
native:
  if (lane->state == LANE_OPEN) fall_behind(lane);
  lane->state = LANE_NATIVE;
  return SK_PASS;
}

/* The agent is told once, by whichever end comes last. */
static __always_inline void qualified(const struct meter *meter) {
  struct tuple key = meter->flow;
  struct direct *flow = flow_of(&key);
  if (!flow || flow->state & DIRECT_READY) return;
  u64 client = flow->client, server = flow->server;
  struct meter *a = consumed.lookup(&client), *b = consumed.lookup(&server);
  if (!a || !b || a->native || b->native || a->receives < RECEIVES || b->receives < RECEIVES) return;
  flow->state |= DIRECT_READY;
  tell(&key, flow, flow->holder, HAPPENED_READY, 0);
}

static __always_inline void drained(const struct meter *meter) {
  struct tuple key = meter->flow;
  struct direct *flow = flow_of(&key);
  if (!flow) return;
  struct direct told = *flow;
  u32 next = 0, acknowledged = 0;
  if (!read_at(meter->own + rcv_nxt_offset(), &next) || !read_at(meter->own + snd_una_offset(), &acknowledged)) return;
  told.sent = next;
  told.received = acknowledged;
  tell(&key, &told, told.holder, HAPPENED_DRAINED, told.client == meter->own);
}

/* Raw tracepoint sock_recv_length (sk, length, flags), since Linux 6.3. Its link cannot be updated, so what is attached is
 * a stub that calls through a pinned program array. The kernel sets MSG_DONTWAIT where the descriptor is O_NONBLOCK. */
int received(struct bpf_raw_tracepoint_args *ctx) {
  u64 sk = ctx->args[0];
  int length = (int)ctx->args[1], flags = (int)ctx->args[2];
  struct meter *meter = consumed.lookup(&sk);
  if (!meter || flags & MSG_ERRQUEUE) return 0;
  int begins = !meter->receives && !meter->doubts && !meter->native;
  if (begins) meter->bytes += (int)unaccounted(meter);     /* it may have begun before the meter was made */
  else if (length > 0 && !(flags & MSG_PEEK)) __sync_fetch_and_add(&meter->bytes, length);
  if (!(flags & MSG_DONTWAIT) || flags & (MSG_WAITALL | MSG_OOB | MSG_TRUNC)) bar(meter);
  else if (++meter->receives == RECEIVES) qualified(meter);
  if (meter->behind && (u32)meter->bytes - meter->by_tcp == (u32)meter->moved) {
    meter->behind = 0;
    drained(meter);
  }
  return 0;
}

/* Options that a socket which is handed messages cannot honour. Accepted sockets inherit them, as they do the option. */
int setsockopt(struct bpf_sockopt *ctx) {
  int level = ctx->level, name = ctx->optname;
  int socket = level == SOL_SOCKET && (name == SO_RCVLOWAT || name == SO_ZEROCOPY || name == SO_PEEK_OFF ||
                                       name == SO_TIMESTAMP || name == SO_TIMESTAMPNS || name == SO_TIMESTAMPING ||
                                       name == SO_TIMESTAMP_NEW || name == SO_TIMESTAMPNS_NEW ||
                                       name == SO_TIMESTAMPING_NEW);
  int tcp = level == IPPROTO_TCP && (name == TCP_ULP || name == TCP_REPAIR || name == TCP_INQ);
  struct bpf_sock *sk = ctx->sk;
  if (!sk || (!socket && !tcp) || sk->protocol != IPPROTO_TCP) return 1;
  u32 *needs_tcp = options.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (needs_tcp) *needs_tcp = 1;
  u64 pointer = (u64)sk;
  struct lane *lane = lanes.sk_storage_get(sk, 0, 0);
  struct meter *meter = consumed.lookup(&pointer);
  if (lane && lane->state == LANE_OPEN) {
    fall_behind(lane);
    lane->state = LANE_NATIVE;
  }
  if (meter) bar(meter);
  return 1;
}

int received_stub(struct bpf_raw_tracepoint_args *ctx) {
  stages.call(ctx, 0);
  return 0;
}

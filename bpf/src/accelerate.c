/* Acceleration of the loopback leg between application and agent: bytes go from socket to socket. Off unless
 * settings.accelerate names the direction, because the application's socket then is not quite a TCP socket any more:
 * splice() from it does not see redirected bytes, MSG_WAITALL returns early, SO_RCVLOWAT is ignored, MSG_OOB comes in-band
 * and MSG_ZEROCOPY never completes. Towards the agent alone, only the last two of these remain.
 *
 * Order and memory hold because of four rules. A direction is redirected from its first byte or never. One that leaves
 * redirect stays native for the life of the connection; readers drain redirected messages before the TCP queue. Unread
 * charge, message overhead included, is bounded by BUDGET. More read than redirected means bytes that nobody counted:
 * native. */

static __always_inline void accelerate(struct bpf_sock_ops *s, struct bpf_sock *sk, struct tuple *own, u64 peer,
                                       u32 direction) {
  u32 zero = 0;
  struct settings *config = settings.lookup(&zero);
  u32 wanted = config ? config->accelerate : 0;
  if (direction == ACCELERATE_PODS ? !(wanted & ACCELERATE_PODS) : !(wanted & ~ACCELERATE_PODS)) return;
  u64 pointer = (u64)sk;
  struct meter fresh = {};
  u32 *needs_tcp = options.sk_storage_get(sk, 0, 0);
  if (needs_tcp && *needs_tcp) fresh.native = 1;
  struct lane *lane = lanes.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (!lane) return;
  lane->peer = peer;
  lane->direction = direction;
  lane->state = LANE_NATIVE;
  if (consumed.update(&pointer, &fresh) || ends.update(own, &pointer)) return;
  long error = accelerated.sock_hash_update(s, own, BPF_ANY);
  if (!error && !fresh.native) lane->state = LANE_OPEN;
  watch_close(s);
}

/* A closed socket takes its meter with it. Called for every close that is watched; those without a lane pass. */
static __always_inline void slow_down(struct bpf_sock_ops *s, struct bpf_sock *sk) {
  struct lane *lane = lanes.sk_storage_get(sk, 0, 0);
  if (!lane) return;
  struct tuple own = {};
  u64 pointer = (u64)sk;
  own.netns = bpf_get_netns_cookie(s);
  from_server(s, &own);
  u64 *end = ends.lookup(&own);
  if (end && *end == pointer) ends.delete(&own);
  consumed.delete(&pointer);
}

int message(struct sk_msg_md *m) {
  u32 zero = 0, size = m->size;
  struct bpf_sock *own = m->sk;
  struct lane *lane = own ? lanes.sk_storage_get(own, 0, 0) : 0;
  if (!lane || lane->state == LANE_NATIVE) return SK_PASS;
  if (lane->state == LANE_SHUT) return SK_DROP;
  struct settings *config = settings.lookup(&zero);
  if (!config || !(config->accelerate & lane->direction)) goto native;
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
  u64 *reader = ends.lookup(&peer);
  if (!reader) goto native;
  u64 sk = *reader;
  if (lane->reader && lane->reader != sk) goto native;
  lane->reader = sk;
  struct meter *meter = consumed.lookup(&sk);
  if (!meter || meter->native) goto native;
  u64 read = meter->bytes;
  if (read > lane->sent) goto native;
  if (read >= lane->mark) {                                /* all that was charged before the mark has been read */
    lane->charged -= lane->before;
    lane->before = lane->charged;
    lane->mark = lane->sent;
  }
  if (lane->charged + size + OVERHEAD > BUDGET) goto native;
  if (accelerated.msg_redirect_hash(m, &peer, BPF_F_INGRESS) != SK_PASS) goto native; /* it is just closing */
  lane->charged += size + OVERHEAD;
  lane->sent += size;
  lane->messages++;
  __sync_fetch_and_add(&meter->moved, size);
  return SK_PASS;
native:
  lane->state = LANE_NATIVE;
  return SK_PASS;
}

/* Raw tracepoint sock_recv_length (sk, length, flags), since Linux 6.3. Its link cannot be updated, so what is attached is
 * a stub that calls through a pinned program array. */
int received(struct bpf_raw_tracepoint_args *ctx) {
  u64 sk = ctx->args[0];
  int length = (int)ctx->args[1], flags = (int)ctx->args[2];
  struct meter *meter = length > 0 ? consumed.lookup(&sk) : 0;
  if (!meter || flags & (MSG_PEEK | MSG_ERRQUEUE)) return 0;
  __sync_fetch_and_add(&meter->bytes, length);
  if (flags & MSG_WAITALL) meter->native = 1;              /* this one came back early; those to come will not */
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
  if (lane && lane->state == LANE_OPEN) lane->state = LANE_NATIVE;
  if (meter) meter->native = 1;
  return 1;
}

int received_stub(struct bpf_raw_tracepoint_args *ctx) {
  stages.call(ctx, 0);
  return 0;
}

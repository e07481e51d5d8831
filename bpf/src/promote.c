/* Promotion of one end of a direct flow, or of a loopback leg, whose ends are in one netns. The agent runs this in the
 * end's netns by BPF_PROG_TEST_RUN, the flow in place of a packet: a program of this type may look a socket up and put it
 * into the sockhash, and needs no descriptor of it.
 *
 * From here on the socket's receives look at what is redirected to it; its own lane opens when the other end's meter and
 * entry are there too. Nothing has to happen at both ends at once. */

static __always_inline struct bpf_sock *find(struct __sk_buff *skb, const struct tuple *own) {
  struct bpf_sock_tuple at = {};
  u32 size = sizeof(at.ipv6);
  if (is_v4(own->local)) {
    size = sizeof(at.ipv4);
    at.ipv4.saddr = own->remote[3];
    at.ipv4.daddr = own->local[3];
    at.ipv4.sport = bpf_htons(own->remote_port);
    at.ipv4.dport = bpf_htons(own->local_port);
  } else {
    MOVE6(at.ipv6.saddr, own->remote);
    MOVE6(at.ipv6.daddr, own->local);
    at.ipv6.sport = bpf_htons(own->remote_port);
    at.ipv6.dport = bpf_htons(own->local_port);
  }
  return bpf_sk_lookup_tcp(skb, &at, size, BPF_F_CURRENT_NETNS, 0);
}

/* Bytes that no receive accounts for: spliced, or a receive is just returning, then it shows the next time. */
static __always_inline int doubtful(struct meter *meter) {
  if (!unaccounted(meter)) return 0;
  if (++meter->doubts > DOUBTS) meter->native = 1;
  meter->receives = 0;
  return 1;
}

static __always_inline int admit(struct bpf_sock *sk, struct tuple *own, u64 self, u64 other, u64 peer) {
  u32 *needs_tcp = options.sk_storage_get(sk, 0, 0);
  struct meter *meter = consumed.lookup(&self), *theirs = consumed.lookup(&other);
  if (!meter || !theirs) return NOT_THERE;
  if (meter->native || theirs->native || (needs_tcp && *needs_tcp)) return NOT_FIT;
  if (doubtful(meter) || doubtful(theirs)) return IN_DOUBT;
  struct lane *lane = lanes.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (!lane) return NOT_FIT;
  lane->own = self;
  lane->peer = peer;
  lane->reader = other;
  lane->after = theirs->receives;
  lane->state = LANE_NATIVE;
  return accelerated.update(own, (int *)sk) ? NOT_FIT : PROMOTED;
}

struct end {                /* one of the two that the flow has; `own` names it */
  struct tuple own;
  u64 self;
  u64 other;
  u64 peer;                 /* netns cookie of the other one */
};

static __always_inline void end_of(const struct direct *flow, const struct tuple *key, u32 client, struct end *end) {
  end->own = *key;
  end->self = flow->server;
  end->other = flow->client;
  end->peer = flow->source;
  if (!client) return;
  end->self = flow->client;
  end->other = flow->server;
  end->peer = key->netns;
  end->own.netns = flow->source;
  MOVE6(end->own.local, key->remote);
  MOVE6(end->own.remote, key->local);
  end->own.local_port = key->remote_port;
  end->own.remote_port = key->local_port;
}

int promote(struct __sk_buff *skb) {
  struct promotion *wanted = (void *)(long)skb->data;
  if ((void *)(wanted + 1) > (void *)(long)skb->data_end) return NOT_THERE;
  struct tuple key = wanted->flow;
  struct end end = {};
  u32 client = wanted->client;
  struct direct *flow = flow_of(&key);
  if (!flow) return NOT_THERE;
  end_of(flow, &key, client, &end);
  struct bpf_sock *sk = find(skb, &end.own);
  if (!sk) return NOT_THERE;
  u64 found = (u64)sk;
  int result = NOT_THERE;
  if (found == end.self && sk->state == BPF_TCP_ESTABLISHED) result = admit(sk, &end.own, end.self, end.other, end.peer);
  bpf_sk_release(sk);
  if (result == IN_DOUBT) flow->state &= ~DIRECT_READY;
  return result;
}

/* Redirected bytes that the application has not had. What is under way counts: `moved` grows before a message goes. A
 * receive that is just returning, or that has seen the end of the stream, makes it more than it is. */
static __always_inline u32 unread(const struct meter *meter) {
  u32 copied = 0;
  if (!read_copied(meter->own, &copied)) return 1;
  return (u32)meter->moved - (u32)meter->bytes + (copied - meter->first);
}

/* Out of the sockhash, which makes it a TCP socket again in every respect. That drops what is unread, so there must be
 * nothing: both lanes are closed first, and then some time goes by for programs that began before. */
int demote(struct __sk_buff *skb) {
  struct promotion *wanted = (void *)(long)skb->data;
  if ((void *)(wanted + 1) > (void *)(long)skb->data_end) return NOT_THERE;
  struct tuple key = wanted->flow;
  struct end end = {};
  u32 client = wanted->client, last = wanted->last;
  struct direct *flow = flow_of(&key);
  if (!flow) return NOT_THERE;
  end_of(flow, &key, client, &end);
  u64 self = end.self, other = end.other;
  struct meter *meter = consumed.lookup(&self), *theirs = consumed.lookup(&other);
  if (!meter || !theirs) return NOT_THERE;
  if (!last) meter->native = theirs->native = 1;
  if (!last || !meter->native || !theirs->native || unread(meter)) return UNREAD;
  accelerated.delete(&end.own);
  return DEMOTED;
}

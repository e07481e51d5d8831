/* The life of a socket: entries that others look for are made when its SYN is about to be sent, handed over when the
 * other side is established, and removed when it closes. A stale entry would be a permission. */

/* Nothing is made here that the hooks did not decide in connect(). A full map is counted; the SYN then finds no entry. */
static __always_inline void connecting(struct bpf_sock_ops *s, struct asked *asked) {
  struct tuple *key = &asked->key;
  u64 cookie = bpf_get_socket_cookie(s);
  if (asked->kind != DIRECT) key->netns = asked->kind == PROBE ? 0 : bpf_get_netns_cookie(s);
  from_client(s, key);
  struct tuple at = *key;
  if (asked->kind == DIRECT) {
    if (!record(s, &at, asked, cookie)) return;
    asked->holds = HOLDS_DIRECT | HOLDS_QUOTA;
    charge(bpf_get_netns_cookie(s));
    watch_close(s);
    return;
  }
  /* lookup.c lets IPv4 pass where both ends are one address; nothing need be recorded */
  if (asked->kind == LOCAL && is_v4(at.local) && is_same(at.local, at.remote)) return;
  if (asked->kind == CAPTURED) {
    struct destination to = {};
    to.holder = cookie;
    MOVE6(to.ip, asked->ip);
    to.port = asked->port;
    to.drawn = asked->drawn;
    if (captured.update(&at, &to)) {
      refused(&at, MAP_FULL);
      return;
    }
    asked->holds = HOLDS_CAPTURED | HOLDS_QUOTA;
    charge(at.netns);
  } else if (asked->kind == LOCAL) {
    if (loops.update(&at, &cookie)) {
      refused(&at, MAP_FULL);
      return;
    }
    asked->holds = HOLDS_LOOP | HOLDS_QUOTA;
    charge(at.netns);
  } else {
    if (flows.update(&at, &cookie)) {
      refused(&at, MAP_FULL);
      return;
    }
    asked->holds = HOLDS_FLOW;
    if (asked->kind == LAST_HOP && asked->port) {
      struct endpoint client = {};
      MOVE6(client.ip, asked->ip);
      client.port = asked->port;
      if (clients.update(&at, &client)) refused(&at, MAP_FULL);
      else asked->holds |= HOLDS_CLIENT;
    }
  }
  watch_close(s);
  if (asked->kind == CAPTURED || asked->kind == LAST_HOP) watch_bytes(s);
}

/* The agent's end of a captured connection takes the entry over: a client that sends and closes at once may be gone
 * before the agent accepts. The application's end of a last hop learns who its client is. */
static __always_inline void accepted(struct bpf_sock_ops *s, struct bpf_sock *sk) {
  struct tuple key = {};
  key.netns = bpf_get_netns_cookie(s);
  if (!enrolled.lookup(&key.netns)) return;
  from_server(s, &key);
  struct direct *flow = directs.lookup(&key);
  if (flow && flow->admitted && flow->admitted == flow->holder) {
    watch_bytes(s);
    return;
  }
  struct destination *to = captured.lookup(&key);
  struct endpoint *client = to ? 0 : clients.lookup(&key);
  if (!to && !client) return;
  watch_bytes(s);
  struct asked *asked = sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (!asked) {
    refused(&key, MAP_FULL);
    return;
  }
  asked->key = key;
  if (to) {
    asked->kind = ACCEPTED;
    asked->holds = HOLDS_CAPTURED;
    to->holder = bpf_get_socket_cookie(s);
    watch_close(s);
  } else {
    asked->kind = SERVED;
    MOVE6(asked->ip, client->ip);
    asked->port = client->port;
    clients.delete(&key);
  }
  leg_accepted(s, sk, &key);
}

static __always_inline void established(struct bpf_sock_ops *s, struct bpf_sock *sk, struct asked *asked) {
  if (asked->kind == DIRECT) {
    reached(s, sk, asked);
    return;
  }
  if (asked->kind != CAPTURED && asked->kind != LAST_HOP) return;
  struct tuple leg = asked->key;
  leg_begins(s, sk, &leg);
}

static __always_inline void closed(struct bpf_sock_ops *s, struct bpf_sock *sk, struct asked *asked) {
  struct tuple key = asked->key;
  u64 cookie = bpf_get_socket_cookie(s);
  u16 holds = asked->holds;
  asked->holds = 0;
  if (holds & HOLDS_QUOTA) discharge(asked->kind == DIRECT ? bpf_get_netns_cookie(s) : key.netns);
  if (holds & HOLDS_DIRECT) parted(s, sk, &key, cookie);
  else leg_ends(s, sk, &key);
  if (holds & HOLDS_CAPTURED) {
    struct destination *to = captured.lookup(&key);
    if (to && to->holder == cookie) captured.delete(&key);
  }
  if (holds & HOLDS_FLOW) {
    u64 *holder = flows.lookup(&key);
    if (holder && *holder == cookie) flows.delete(&key);
  }
  if (holds & HOLDS_LOOP) {
    u64 *holder = loops.lookup(&key);
    if (holder && *holder == cookie) loops.delete(&key);
  }
  if (holds & HOLDS_CLIENT) clients.delete(&key);
}

/* A closed socket takes its meter with it. */
static __always_inline void slow_down(struct bpf_sock_ops *s, struct bpf_sock *sk, const struct asked *asked) {
  u64 pointer = (u64)sk;
  struct meter *meter = consumed.lookup(&pointer);
  if (!meter) return;
  if (!asked) served(s, meter);
  consumed.delete(&pointer);
}

int sockops(struct bpf_sock_ops *s) {
  if (s->family != AF_INET && s->family != AF_INET6) return 0;
  if (s->op == BPF_SOCK_OPS_RTT_CB) {
    progressed(s);
    return 0;
  }
  if (s->op == BPF_SOCK_OPS_PARSE_HDR_OPT_CB) {
    nudged(s);
    return 0;
  }
  int starts = s->op == BPF_SOCK_OPS_TCP_CONNECT_CB, passive = s->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB;
  int opens = passive || s->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB;
  int ends_here = s->op == BPF_SOCK_OPS_STATE_CB && s->args[1] == BPF_TCP_CLOSE;
  if (!starts && !opens && !ends_here) return 0;
  struct bpf_sock *sk = s->sk;
  if (!sk) return 0;
  struct asked *asked = sockets.sk_storage_get(sk, 0, 0);
  /* Who meets a SYN where it waits for the answer to its own is called passive too (RFC 9293, 3.5): an impostor's way */
  if (passive && (!asked || asked->kind == NOTHING)) {
    accepted(s, sk);
    return 0;
  }
  if (ends_here && asked) closed(s, sk, asked);
  if (ends_here && is_metered(s)) slow_down(s, sk, asked);
  if (ends_here || !asked || asked->kind == NOTHING) return 0;
  if (starts) connecting(s, asked);
  else established(s, sk, asked);
  return 0;
}

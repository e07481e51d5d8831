/* connect(): the polite half. A pod's connections go to the agent's listener in the pod's own netns, and what was asked
 * for is remembered with the socket. Inbound enforcement (lookup.c) does not depend on it. */

enum { REFUSE = 0, PASS = 1, CAPTURE = 2, REPLACE = 3 };

static __always_inline int runs_under(u64 cgroup, u32 level) {
  return cgroup && bpf_get_current_ancestor_cgroup_id(level) == cgroup;
}

static __always_inline struct asked *remember(struct bpf_sock_addr *ctx, u16 kind) {
  struct asked *asked = sockets.sk_storage_get(ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (asked) asked->kind = kind;
  return asked;
}

static __always_inline int is_own(u64 netns, const u32 *ip) {
  struct place place = {};
  place.netns = netns;
  MOVE6(place.ip, ip);
  return addresses.lookup(&place) != 0;
}

/* The agent's last hop: its SYN passes to the application, which is shown the announced client. */
static __always_inline int agent_connects(struct bpf_sock_addr *ctx, const struct tuple *to) {
  u64 cookie = bpf_get_socket_cookie(ctx);
  struct endpoint *client = announced.lookup(&cookie);
  if (!client && !is_own(to->netns, to->local)) return PASS;
  struct asked *asked = remember(ctx, LAST_HOP);
  if (!asked) {
    refused(to, MAP_FULL);
    return REFUSE;
  }
  asked->port = 0;
  if (client) {
    MOVE6(asked->ip, client->ip);
    asked->port = client->port;
    announced.delete(&cookie);
  }
  return PASS;
}

/* As decided by policy: to what was dialled, or to the endpoint that was drawn, which then stands in `to`. */
static __always_inline int go_direct(struct bpf_sock_addr *ctx, struct tuple *to, const struct drawn *drawn,
                                     const struct judgement *found) {
  if (found->reason) {
    refused(to, found->reason);
    return REFUSE;
  }
  struct asked *asked = over_quota(to->netns) ? 0 : remember(ctx, DIRECT);
  if (!asked) {
    refused(to, MAP_FULL);
    return REFUSE;
  }
  asked->key.netns = found->destination;
  asked->generation = found->generation;
  asked->accelerate = found->accelerate;
  asked->port = 0;
  if (!drawn->what) return PASS;
  MOVE6(asked->ip, to->local);
  asked->port = to->local_port;
  MOVE6(to->local, drawn->ip);
  to->local_port = drawn->port;
  return REPLACE;
}

static __always_inline int capture(struct bpf_sock_addr *ctx, const struct tuple *to, const struct drawn *drawn) {
  struct pod *pod = pods.lookup((u64 *)&to->netns);
  if (!pod || over_quota(to->netns)) {
    refused(to, MAP_FULL);
    return REFUSE;
  }
  if (ctx->sk->bound_dev_if) {                             /* loopback is not reached through another device */
    char none[1] = "";
    if (bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTODEVICE, none, sizeof(none))) {
      refused(to, UNROUTABLE_SOCKET);
      return REFUSE;
    }
  }
  struct asked *asked = remember(ctx, CAPTURED);
  if (!asked) {
    refused(to, MAP_FULL);
    return REFUSE;
  }
  u64 *steered_by = steered.sk_storage_get(ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (steered_by) *steered_by = layout_id();
  MOVE6(asked->ip, to->local);
  asked->port = to->local_port;
  asked->drawn = *drawn;
  if (is_v4(to->local)) MOVE6(asked->source, pod->source4);
  else MOVE6(asked->source, pod->source6);
  return CAPTURE;
}

static __always_inline int decide(struct bpf_sock_addr *ctx, struct tuple *to) {
  u32 zero = 0;
  struct settings *config = settings.lookup(&zero);
  struct asked *asked = sockets.sk_storage_get(ctx->sk, 0, 0);
  if (asked) asked->kind = NOTHING;                        /* connect() again, after a failure or a disconnect */
  u64 *steered_by = steered.sk_storage_get(ctx->sk, 0, 0);
  if (steered_by && *steered_by == layout_id()) *steered_by = 0;
  if (!config) return PASS;
  if (runs_under(config->agent, config->agent_level)) return agent_connects(ctx, to);
  if (!enrolled_in(to->netns)) {
    if (runs_under(config->kubelet, config->kubelet_level)) remember(ctx, PROBE);
    return PASS;
  }
  u16 port = to->local_port;
  int own = is_own(to->netns, to->local);
  if (own || is_loopback(to->local)) {
    if (steered_by && *steered_by && port == OUTBOUND_PORT && is_127(to->local)) return PASS;
    if (port == OUTBOUND_PORT || port == PLAINTEXT_PORT || (port == TUNNEL_PORT && !own)) {
      refused(to, RESERVED_PORT);
      return REFUSE;
    }
    if (own && (over_quota(to->netns) || !remember(ctx, LOCAL))) {
      refused(to, MAP_FULL);
      return REFUSE;
    }
    return PASS;
  }
  struct prefix prefix = {.bits = 128};
  MOVE6(prefix.ip, to->local);
  if (bypass.lookup(&prefix)) return PASS;
  if (is_link_local(to->local)) {                          /* which link, the agent could not tell */
    refused(to, UNROUTABLE_SOCKET);
    return REFUSE;
  }
  struct drawn drawn = {};
  struct judgement found = {};
  if (choose(to, &drawn, &found) && !opens_fast(ctx)) return go_direct(ctx, to, &drawn, &found);
  return capture(ctx, to, &drawn);
}

/* 127.x.y.z: one address alone would leave a pod 28 k ephemeral ports. Never .0 nor .255, which may be broadcasts. */
static __always_inline u32 spread4(void) {
  u32 r = bpf_get_prandom_u32();
  return bpf_htonl(0x7f000000 | (r & 0xffff00) | (1 + (r >> 24) % 254));
}

int connect4(struct bpf_sock_addr *ctx) {
  if (ctx->protocol != IPPROTO_TCP || ctx->type != SOCK_STREAM) return PASS;
  struct tuple to = {};
  to.netns = bpf_get_netns_cookie(ctx);
  MAP4(to.local, ctx->user_ip4);
  to.local_port = bpf_ntohs((u16)ctx->user_port);
  int verdict = decide(ctx, &to);
  if (verdict == PASS || verdict == REFUSE) return verdict;
  ctx->user_ip4 = verdict == REPLACE ? to.local[3] : spread4();
  ctx->user_port = bpf_htons(verdict == REPLACE ? to.local_port : OUTBOUND_PORT);
  return PASS;
}

int connect6(struct bpf_sock_addr *ctx) {
  if (ctx->protocol != IPPROTO_TCP || ctx->type != SOCK_STREAM) return PASS;
  struct tuple to = {};
  to.netns = bpf_get_netns_cookie(ctx);
  COPY6(to.local, ctx->user_ip6);
  to.local_port = bpf_ntohs((u16)ctx->user_port);
  int verdict = decide(ctx, &to);
  if (verdict == PASS || verdict == REFUSE) return verdict;
  if (verdict == REPLACE) {
    ctx->user_ip6[0] = to.local[0];
    ctx->user_ip6[1] = to.local[1];
    ctx->user_ip6[2] = to.local[2];
    ctx->user_ip6[3] = to.local[3];
    ctx->user_port = bpf_htons(to.local_port);
    return PASS;
  }
  if (is_v4(to.local)) {
    ctx->user_ip6[3] = spread4();
    ctx->user_port = bpf_htons(OUTBOUND_PORT);
    return PASS;
  }
  ctx->user_ip6[0] = 0;
  ctx->user_ip6[1] = 0;
  ctx->user_ip6[2] = 0;
  ctx->user_ip6[3] = bpf_htonl(1);
  ctx->user_port = bpf_htons(SPREAD6_FIRST + bpf_get_prandom_u32() % SPREAD6_PORTS);
  return PASS;
}

/* Every inbound TCP packet of an enrolled pod that no connected socket is waiting for: each SYN, whoever sent it, and
 * strays. The half that cannot be bypassed. One instance per pod; the
 * cookie of its netns is a constant in it, because the helper that would tell does not exist here.
 *
 * SK_DROP answers with RST: closed, and quickly. */

static __always_inline u64 own_netns(void) {
  u64 cookie;
  asm volatile("%0 = 0x4e6574436f6f6b69 ll" : "=r"(cookie)); /* "NetCooki" */
  return cookie;
}

static __always_inline int give(struct bpf_sk_lookup *ctx, const struct tuple *syn, u32 kind) {
  struct pod *pod = pods.lookup((u64 *)&syn->netns);
  if (!pod) return SK_DROP;
  u32 at = pod->slot * KINDS + kind + (is_v4(syn->local) ? 0 : 1);
  struct bpf_sock *sk = (struct bpf_sock *)listeners.lookup(&at);
  if (!sk) {
    refused(syn, AGENT_ABSENT);
    return SK_DROP;
  }
  long error = bpf_sk_assign(ctx, sk, 0);
  bpf_sk_release(sk);
  if (error == -EEXIST) return SK_PASS;                    /* a program of another layout has given it away already */
  if (error) refused(syn, AGENT_ABSENT);
  return error ? SK_DROP : SK_PASS;
}

static __always_inline int drop(const struct tuple *syn, u32 reason) {
  refused(syn, reason);
  return SK_DROP;
}

static __always_inline void read_syn(struct bpf_sk_lookup *ctx, struct tuple *syn) {
  syn->netns = own_netns();
  if (ctx->family == AF_INET) {
    MAP4(syn->local, ctx->local_ip4);
    MAP4(syn->remote, ctx->remote_ip4);
  } else {
    COPY6(syn->local, ctx->local_ip6);
    COPY6(syn->remote, ctx->remote_ip6);
  }
  syn->local_port = ctx->local_port;
  syn->remote_port = bpf_ntohs(ctx->remote_port);
}

/* Recorded before the SYN was sent: by the pod to itself, by the agent's last hop, or by the kubelet (netns 0). */
static __always_inline int recorded(const struct tuple *syn) {
  struct tuple key = *syn;
  if (loops.lookup(&key) || flows.lookup(&key)) return 1;
  key.netns = 0;
  return flows.lookup(&key) != 0;
}

int lookup(struct bpf_sk_lookup *ctx) {
  if (ctx->protocol != IPPROTO_TCP) return SK_PASS;
  struct tuple syn = {};
  read_syn(ctx, &syn);
  u16 port = syn.local_port;
  int loop4 = is_127(syn.local), loopback = loop4 || is_one(syn.local);
  if (loopback && captured.lookup(&syn)) return give(ctx, &syn, OUTBOUND4);
  if (!enrolled_in(syn.netns)) return SK_PASS;
  /* ::1 cannot come from outside; 127/8 could, where route_localnet is set */
  if (loopback && (!loop4 || ctx->ingress_ifindex == 1 || is_127(syn.remote))) {
    if (port == OUTBOUND_PORT) {
      count(NO_DESTINATION);                               /* no event: late packets of closed connections come here too */
      return SK_DROP;
    }
    if (port == PLAINTEXT_PORT || port == TUNNEL_PORT) return drop(&syn, RESERVED_PORT);
    return SK_PASS;
  }
  if (port == TUNNEL_PORT) return give(ctx, &syn, TUNNEL4);
  if (port == OUTBOUND_PORT || port == PLAINTEXT_PORT) return drop(&syn, RESERVED_PORT);
  int signature = sign(&syn);                              /* of a pod to itself too, through its own Service */
  if (signature) return signature - 1;
  /* IPv4: the kernel drops such packets from outside as martians. IPv6 does not: only a recorded flow passes. */
  if (is_v4(syn.local) && is_same(syn.local, syn.remote)) return SK_PASS;
  if (recorded(&syn)) return SK_PASS;
  return give(ctx, &syn, PLAINTEXT4);
}

/* Loopback legs between an application and the agent, for promotion. The agent never waits in a receive; the application
 * has to show that it does not either, as at the end of a direct flow (accelerate.c), and is treated like one from there on.
 * A leg is no permission: nobody but acceleration looks at it. */

static __always_inline int wants_legs(u64 netns) {
  u32 zero = 0;
  struct settings *config = settings.lookup(&zero);
  if (!config || !config->accelerate) return 0;
  u32 *wanted = sources.lookup(&netns);
  return wanted && *wanted;
}

/* The end that has dialled: the application's of a captured connection, the agent's of a last hop. It is first. */
static __always_inline void leg_begins(struct bpf_sock_ops *s, struct bpf_sock *sk, struct tuple *key) {
  struct direct leg = {};
  if (!wants_legs(key->netns) || !measure(s, sk, key)) return;
  leg.holder = bpf_get_socket_cookie(s);
  leg.source = key->netns;
  leg.opened = bpf_ktime_get_ns();
  leg.client = (u64)sk;
  legs.update(key, &leg);
  watch_nudges(s);
}

static __always_inline void leg_accepted(struct bpf_sock_ops *s, struct bpf_sock *sk, struct tuple *key) {
  struct direct *leg = legs.lookup(key);
  if (!leg || !measure(s, sk, key)) return;
  leg->server = (u64)sk;
  watch_nudges(s);
}

static __always_inline void leg_ends(struct bpf_sock_ops *s, struct bpf_sock *sk, struct tuple *key) {
  u64 pointer = (u64)sk;
  struct direct *leg = legs.lookup(key);
  if (!leg) return;
  learn(s, consumed.lookup(&pointer));
  if (leg->holder == bpf_get_socket_cookie(s)) legs.delete(key);
}

/* The direct path: a pod of this node is reached without the agent where targets and verdicts say so. The source is known
 * by its netns, in connect(); the destination by its own lookup program, which signs the flow while the SYN passes. What is
 * established without a signature reached somebody else: an address that was reused or borrowed.
 *
 * settings.generation is part of the keys: an entry of another one is a miss, and a miss goes to the agent. Whoever changes
 * policy writes the next generation, raises the number, removes the former; each judgement is by one of them, whole. A flow
 * is recorded before its SYN is sent and judged again as the SYN arrives, so one that the agent does not find in `directs`
 * after raising the generation is judged by the new one.
 *
 * A hash map gives the memory of an entry that was removed to the next one at once, also while a program looks at it. What
 * was read is true if the same key leads to the same place afterwards: it never does again once its generation is over. */

struct judgement {
  u64 destination;          /* cookie of its netns */
  u32 generation;
  u32 reason;               /* 0: allowed */
  u32 accelerate;
};

/* Whether it is decided; if not, the agent is to be asked. */
static __always_inline int judge(u64 source, const struct tuple *to, struct judgement *found) {
  u32 zero = 0;
  u16 port = to->local_port;
  struct settings *config = settings.lookup(&zero);
  if (!config || !config->direct || port == OUTBOUND_PORT || port == PLAINTEXT_PORT || port == TUNNEL_PORT) return 0;
  struct place place = {};
  place.netns = found->generation = *(volatile u32 *)&config->generation;
  MOVE6(place.ip, to->local);
  struct target *target = targets.lookup(&place);
  if (!target) return 0;
  u32 mode = target->mode;
  found->destination = target->netns;
  found->accelerate = target->accelerate;
  found->reason = 0;
  if (targets.lookup(&place) != target) return 0;
  u32 *accelerate = sources.lookup(&source);               /* narrowed before the targets of a generation are written */
  if (!accelerate) return 0;
  found->accelerate = found->accelerate && *accelerate;
  if (mode == TARGET_OPEN) return 1;
  struct pair pair = {};
  pair.source = source;
  pair.destination = found->destination;
  pair.port = port;
  pair.generation = found->generation;
  u32 *reason = verdicts.lookup(&pair);
  if (!reason) return 0;
  found->reason = *reason;
  return verdicts.lookup(&pair) == reason;
}

/* In the destination's lookup program: 0 if there is no such flow. What is written says whom it is for: should the entry's
 * memory have become another flow's meanwhile, that one is not admitted by it. */
static __always_inline int sign(const struct tuple *syn) {
  u32 zero = 0;
  struct tuple key = *syn;
  struct direct *flow = directs.lookup(&key);
  struct settings *config = settings.lookup(&zero);
  if (!flow || !config) return 0;
  u64 holder = flow->holder, source = flow->source;
  u32 generation = flow->generation, state = flow->state;
  if (directs.lookup(&key) != flow) return 0;
  if (generation != config->generation && !(state & DIRECT_ESTABLISHED)) {
    struct judgement found = {};
    int decided = judge(source, syn, &found);
    if (!decided && found.generation != config->generation) decided = judge(source, syn, &found); /* it was removed meanwhile */
    if (!decided || found.reason || found.destination != syn->netns) {
      refused(syn, STALE_VERDICT);
      return SK_DROP + 1;
    }
  }
  flow->admitted = holder;
  return SK_PASS + 1;
}

/* Ends do not wake the agent one by one: it looks twice a second, and is woken for every 64th. */
static __always_inline void tell(const struct tuple *key, const struct direct *flow, u64 id, u16 what, u16 accelerated) {
  struct happening h = {};
  h.netns = key->netns;
  MOVE6(h.local, key->local);
  MOVE6(h.remote, key->remote);
  h.local_port = key->local_port;
  h.remote_port = key->remote_port;
  h.reason = what == HAPPENED_MISMATCH ? MISMATCH : OK;
  h.source = flow->source;
  h.id = id;
  h.opened = flow->opened;
  h.at = bpf_ktime_get_ns();
  h.sent = flow->sent;
  h.received = flow->received;
  h.generation = flow->generation;
  h.what = what;
  h.accelerated = accelerated;
  MOVE6(h.asked, flow->asked);
  h.asked_port = flow->asked_port;
  u64 flags = BPF_RB_NO_WAKEUP;
  if (what != HAPPENED_CLOSED || !(id & 63)) flags = BPF_RB_FORCE_WAKEUP;
  if (events.ringbuf_output(&h, sizeof(h), flags)) count(LOST_EVENTS);
}

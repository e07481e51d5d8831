/* Counting and telling why something was refused; who serves a netns; what a pod holds. */

/* Constants that the loader patches into the instructions: hidden from the optimiser, which would take them apart. */
static __always_inline u64 layout_id(void) {
  u64 id;
  asm volatile("%0 = 0x4c61796f75744964 ll" : "=r"(id)); /* "LayoutId" */
  return id;
}

static __always_inline int enrolled_in(u64 netns) {
  u64 *layout = enrolled.lookup(&netns);
  return layout && *layout == layout_id();
}

static __always_inline void count(u32 reason) {
  u64 *n = counters.lookup(&reason);
  if (n) __sync_fetch_and_add(n, 1);                       /* a softirq may come in between */
}

static __always_inline void refused(const struct tuple *who, u32 reason) {
  struct event e = {};
  e.netns = who->netns;
  MOVE6(e.local, who->local);
  MOVE6(e.remote, who->remote);
  e.local_port = who->local_port;
  e.remote_port = who->remote_port;
  e.reason = reason;
  count(reason);
  if (refusals.ringbuf_output(&e, sizeof(e), BPF_RB_FORCE_WAKEUP)) count(LOST_EVENTS);
}

static __always_inline int over_quota(u64 netns) {
  u32 zero = 0;
  struct settings *config = settings.lookup(&zero);
  u32 *held = usage.lookup(&netns);
  return !config || !held || *held >= config->quota;
}

static __always_inline void charge(u64 netns) {
  u32 *held = usage.lookup(&netns);
  if (held) __sync_fetch_and_add(held, 1);
}

static __always_inline void discharge(u64 netns) {
  u32 *held = usage.lookup(&netns);
  if (held && *held) __sync_fetch_and_add(held, -1);
}

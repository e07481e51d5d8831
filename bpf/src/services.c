/* Services: which endpoint a connection goes to is drawn once, in connect(), with the odds that the agent gives. The map
 * holds the endpoints that are targets, and the weight of all. If the draw falls to one that is not here, the agent draws
 * among those; if it falls to a target whose verdict is not known here, the agent honours it. What is drawn is no
 * permission: judge() has the last word, and the address has to lead to the pod that was meant. */

static __always_inline int agent_absent(u64 netns, int v4) {
  struct pod *pod = pods.lookup(&netns);
  u32 at = pod ? pod->slot * KINDS + (v4 ? OUTBOUND4 : OUTBOUND6) : 0;
  struct bpf_sock *sk = pod ? (struct bpf_sock *)listeners.lookup(&at) : 0;
  if (sk) bpf_sk_release(sk);
  return !sk;
}

static __always_inline u64 below(u64 bound) {
  return ((u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32()) % bound;
}

/* The cookie of the endpoint's netns; 0: it is elsewhere, or nothing was drawn, because the entry was replaced meanwhile:
 * it would show parts of two. With no agent to ask, elsewhere is nowhere. */
static __always_inline u64 draw(const struct tuple *to, const struct service *service, struct drawn *drawn) {
  u64 version = *(volatile u64 *)&service->version, total = service->total, here = service->here, netns = 0;
  if (!total || !here) return 0;
  u64 point = below(total);
  if (point >= here && agent_absent(to->netns, is_v4(to->local))) point = below(here);
  drawn->what = DRAWN_ELSEWHERE;
  for (u32 i = 0; i < BACKENDS && i < service->count; i++) {
    const struct backend *backend = &service->backends[i];
    if (point >= backend->upto) continue;
    MOVE6(drawn->ip, backend->ip);
    drawn->port = backend->port;
    drawn->what = DRAWN_ENDPOINT;
    netns = backend->netns;
    break;
  }
  if (*(volatile u64 *)&service->end == version && *(volatile u64 *)&service->version == version) return netns;
  drawn->what = 0;
  return 0;
}

/* Whether it is decided: `found` says how. `drawn` is the endpoint it is about, if a Service was dialled that has some. */
static __always_inline int choose(const struct tuple *to, struct drawn *drawn, struct judgement *found) {
  struct tuple at = *to;
  struct endpoint dialled = {};
  MOVE6(dialled.ip, to->local);
  dialled.port = to->local_port;
  struct service *service = services.lookup(&dialled);
  u64 netns = service ? draw(to, service, drawn) : 0;
  if (service && !netns) return 0;
  if (service) {
    MOVE6(at.local, drawn->ip);
    at.local_port = drawn->port;
  }
  return judge(at.netns, &at, found) && (!service || found->destination == netns);
}

/* Every map of the kernel side. None of those that hold a permission is LRU: one pod's storm evicts nobody.
 *
 * Sizes: an entry of `captured` costs about 150 bytes, allocated when used. 131,072 of them are eight pods at their
 * quota (16,384 together with `loops`), or 128 per pod on a node with 1,024 pods. */

/* Kept across layouts (pinned beside the layout's own directory): which layout serves a netns. Its presence is what
 * enrolled means; one write switches connect hook and inbound steering of a pod together. */
BPF_F_TABLE("hash", u64, u64, enrolled, 4096, BPF_F_NO_PREALLOC);
/* Likewise: which layout's program steered this socket. When a pod is switched over in the middle of a connect(), the old
 * program has rewritten the address and the new one must not take it for the application's. */
BPF_SK_STORAGE(steered, u64);

BPF_TABLE("array", u32, struct settings, settings, 1);
BPF_F_TABLE("hash", u64, struct pod, pods, MAX_PODS, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", struct place, u32, addresses, 16 * MAX_PODS, BPF_F_NO_PREALLOC);
BPF_F_TABLE("lpm_trie", struct prefix, u32, bypass, 4096, BPF_F_NO_PREALLOC);
BPF_TABLE("sockmap", u32, u64, listeners, MAX_PODS * KINDS);
BPF_F_TABLE("hash", u64, u32, usage, 2 * MAX_PODS, BPF_F_NO_PREALLOC);      /* netns cookie -> open connections that count */

BPF_SK_STORAGE(sockets, struct asked);
BPF_F_TABLE("hash", struct tuple, struct destination, captured, 131072, BPF_F_NO_PREALLOC);
/* SYNs that may pass to the application: of a pod to itself, and of the agent and the kubelet, whom no pod's crowd keeps out */
BPF_F_TABLE("hash", struct tuple, u64, loops, 131072, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", struct tuple, u64, flows, 131072, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", u64, struct endpoint, announced, 65536, BPF_F_NO_PREALLOC); /* socket cookie -> real client */
BPF_F_TABLE("hash", struct tuple, struct endpoint, clients, 65536, BPF_F_NO_PREALLOC);

BPF_TABLE("percpu_array", u32, u64, counters, REASONS);
BPF_RINGBUF_OUTPUT(events, 128);                          /* of direct flows: struct happening */
BPF_RINGBUF_OUTPUT(refusals, 64);                         /* struct event. Anybody can cause them, and drowns nothing else */

/* The direct path. Filled by the agent under settings.generation; `directs` by the programs, emptied as sockets close. */
BPF_F_TABLE("hash", struct place, struct target, targets, 16 * MAX_PODS, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", u64, u32, sources, MAX_PODS, BPF_F_NO_PREALLOC);        /* who may dial directly -> 1: accelerated */
BPF_F_TABLE("hash", struct pair, u32, verdicts, 65536, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", struct tuple, struct direct, directs, 131072, BPF_F_NO_PREALLOC);
BPF_TABLE("array", u32, struct attention, attention, 1);
BPF_F_TABLE("hash", struct entry, struct tally, ledger, 16384, BPF_F_NO_PREALLOC); /* of flows that nobody has seen */
BPF_F_TABLE("hash", struct endpoint, struct service, services, 8192, BPF_F_NO_PREALLOC); /* that have a target behind them */

/* Acceleration: of loopback legs between application and agent, and of direct flows */
BPF_F_TABLE("hash", struct tuple, struct direct, legs, 131072, BPF_F_NO_PREALLOC); /* that may be promoted */
BPF_SK_STORAGE(lanes, struct lane);
BPF_F_TABLE("sk_storage", int, u32, options, 0, BPF_F_NO_PREALLOC | BPF_F_CLONE); /* set by the application: needs TCP */
BPF_SOCKHASH(accelerated, struct tuple, 65536);
BPF_F_TABLE("hash", u64, struct meter, consumed, 262144, BPF_F_NO_PREALLOC); /* a socket's address -> what it reads */
BPF_F_TABLE("hash", u64, u32, splicers, 2 * MAX_PODS, BPF_F_NO_PREALLOC);   /* netns that read past receive calls */
BPF_PROG_ARRAY(stages, 1);

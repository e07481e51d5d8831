/* What C and Python both read and write. bpf/layouts.py holds the same formats; a test compiles these structs and compares.
 *
 * An address is 16 bytes in network order, IPv4 as ::ffff:a.b.c.d. Ports are in host order. All padding is named and zero. */

#define BACKENDS 64         /* of a Service on this node that are drawn here; others count as elsewhere */

struct tuple {              /* a connection, from the side that is connected to */
  u64 netns;                /* cookie of the network namespace; 0: dialled from the node, see FLOWS in maps.h */
  u32 local[4];
  u32 remote[4];
  u16 local_port;
  u16 remote_port;
  u32 pad;
};

struct endpoint {
  u32 ip[4];
  u32 port;
};

struct drawn {              /* an endpoint of the Service that was dialled */
  u32 ip[4];
  u16 port;
  u16 what;                 /* DRAWN_*; 0: nothing was drawn, it is the agent's to do */
};

struct destination {        /* what a captured connection asked for */
  u64 holder;               /* cookie of the socket whose closing removes the entry: the client's, then the agent's */
  u32 ip[4];
  u32 port;
  struct drawn drawn;
};

struct pod {
  u32 slot;                 /* its listeners are listeners[slot * KINDS + kind] */
  u32 pad;
  u32 source4[4];           /* what getsockname() shows instead of a loopback address; zero: nothing to show */
  u32 source6[4];
};

struct place {              /* an address of a pod, in its netns */
  u64 netns;                /* of a target: settings.generation instead */
  u32 ip[4];
};

struct prefix {             /* key of the trie of bypassed CIDRs */
  u32 bits;                 /* of the 128-bit form: an IPv4 /8 is 104 */
  u32 ip[4];
};

struct settings {
  u64 agent;                /* cgroup ids; 0: none */
  u64 kubelet;
  u32 agent_level;          /* their depth below the root of the v2 hierarchy, so that sub-cgroups count too */
  u32 kubelet_level;
  u32 quota;                /* connections that one pod may have open: captured, or to itself */
  u32 accelerate;           /* 0: every byte goes by TCP */
  u32 generation;           /* of targets and verdicts: those of another one are misses; the next is written ahead */
  u32 direct;               /* 0: no connection takes the direct path */
};

struct asked {              /* per socket: what the hooks remember from connect() to close() */
  struct tuple key;         /* of the entries that this socket holds */
  u32 ip[4];                /* CAPTURED: what was asked for; DIRECT unless port is 0: the Service that was; SERVED,
                               LAST_HOP unless port is 0: the real client */
  u32 source[4];            /* CAPTURED: see struct pod */
  u32 port;
  u16 kind;
  u16 holds;
  u32 generation;           /* DIRECT: by which it was allowed */
  u32 accelerate;           /* DIRECT: 1 if both pods want it */
  struct drawn drawn;       /* CAPTURED */
  u32 pad;
};

struct backend {            /* an endpoint of a Service that is a target */
  u64 netns;                /* the cookie that has to be the target's */
  u64 upto;                 /* its weight and that of those before it */
  u32 ip[4];
  u32 port;
  u32 pad;
};

struct service {            /* key: struct endpoint, an address of the Service and its port */
  u64 version;              /* never the same twice: whoever reads it before and after has read one state */
  u64 total;                /* weight of all endpoints */
  u64 here;                 /* of the backends */
  u32 count;
  u32 pad;
  struct backend backends[BACKENDS];
  u64 end;                  /* version again */
};

struct target {             /* a pod that connections of this node's pods reach directly, by its address */
  u64 netns;                /* the cookie that has to sign */
  u32 pad;
  u16 mode;                 /* OPEN: any source, any port; LISTED: see verdicts */
  u16 accelerate;
};

struct pair {               /* key of a verdict, which is a reason: 0 is allowed */
  u64 source;               /* netns cookies */
  u64 destination;
  u32 port;
  u32 generation;
};

struct direct {             /* a direct flow; its key is a tuple, where netns is the destination's */
  u64 holder;               /* cookie of the source's socket: names the flow, and its closing removes the entry */
  u64 source;               /* cookie of the source's netns */
  u64 opened;               /* CLOCK_MONOTONIC, ns */
  u64 sent;                 /* bytes by TCP, source to destination, as far as acknowledged */
  u64 received;
  u64 client;               /* addresses of its two sockets, keys of `consumed`; 0: no meter, or gone */
  u64 server;
  u64 admitted;             /* `holder` as the destination signed it; 0: it has not */
  u32 generation;           /* by which it was allowed in connect() */
  u16 state;                /* DIRECT_*, bits */
  u16 accelerate;
  u32 asked[4];             /* the Service that was dialled, unless the port is 0 */
  u32 asked_port;
  u32 pad;
};

struct happening {          /* of a direct flow; begins as struct event does */
  u64 netns;                /* of the destination */
  u32 local[4];
  u32 remote[4];
  u16 local_port;
  u16 remote_port;
  u32 reason;               /* MISMATCH, or OK */
  u64 source;
  u64 id;
  u64 opened;
  u64 at;                   /* when, likewise */
  u64 sent;
  u64 received;
  u32 generation;
  u16 what;                 /* HAPPENED_* */
  u16 accelerated;          /* 1: bytes went from socket to socket */
  u32 asked[4];             /* as in struct direct */
  u32 asked_port;
  u32 pad;
};

struct attention {          /* what the agent has seen of direct flows, and wants to be told */
  u64 listed;               /* those that were opened until then (CLOCK_MONOTONIC, ns) it has found in `directs` */
  u32 page;                 /* of the ledger; it reads the other one */
  u32 each;                 /* 1: it wants to hear of every end; 0: of those that it has found */
};

struct entry {              /* key of the ledger: what direct flows that have ended have in common */
  u64 source;               /* netns cookies */
  u64 destination;
  u32 client[4];
  u32 server[4];
  u32 asked[4];             /* as in struct direct */
  u16 port;                 /* of the server */
  u16 asked_port;
  u32 page;
};

struct tally {
  u64 flows;
  u64 sent;                 /* bytes, as in struct direct */
  u64 received;
};

struct lane {               /* per socket that may hand over bytes: the direction that it sends in */
  u64 own;                  /* address of the socket */
  u64 peer;                 /* cookie of the netns of the other end */
  u64 reader;               /* address of the reading socket, key of `consumed` */
  u64 charged;              /* bytes redirected plus OVERHEAD for each message, as far as they may be unread */
  u64 before;               /* of that, what was sent before the mark */
  u64 mark;                 /* a former value of `sent` */
  u64 sent;                 /* bytes redirected */
  u32 by_tcp;               /* bytes that the reader had by TCP when the lane opened; nothing goes by TCP while it is open */
  u32 after;                /* receives of the reader when it was promoted: there must have been another since */
  u32 state;                /* LANE_* */
  u32 overruns;             /* how often it closed because the reader was behind */
};

struct meter {              /* per reading socket of a leg, or of a flow whose reader sends too */
  struct tuple flow;        /* key in `directs` or `legs` */
  u64 own;                  /* address of the socket */
  u64 bytes;                /* received by the application, peeks left out */
  u64 moved;                /* redirected to this socket */
  u32 first;                /* sequence number of the first byte */
  u32 receives;             /* calls that did not wait */
  u32 native;               /* not 0: what this reader does needs TCP */
  u32 doubts;               /* how often it had bytes that no receive accounts for */
  u32 behind;               /* 1: bytes go by TCP while redirected ones are unread */
  u32 by_tcp;               /* behind: as in the lane */
};

struct promotion {          /* what the agent hands the promoting program as a packet; the first 14 bytes are its MAC header */
  struct tuple flow;
  u32 client;               /* 1: the source's end, 0: the destination's */
  u32 last;                 /* of a demotion, 1: both lanes have been closed for long enough */
};

struct event {
  u64 netns;
  u32 local[4];             /* from the side that is connected to, as in struct tuple */
  u32 remote[4];
  u16 local_port;
  u16 remote_port;
  u32 reason;
};

enum kind { NOTHING, CAPTURED, LOCAL, PROBE, LAST_HOP, SERVED, ACCEPTED, DIRECT };
enum holds { HOLDS_CAPTURED = 1, HOLDS_FLOW = 2, HOLDS_CLIENT = 4, HOLDS_QUOTA = 8, HOLDS_DIRECT = 16, HOLDS_LOOP = 32 };
enum listener { OUTBOUND4, OUTBOUND6, PLAINTEXT4, PLAINTEXT6, TUNNEL4, TUNNEL6, KINDS };
enum lane_state { LANE_OPEN, LANE_NATIVE, LANE_SHUT };
enum target_mode { TARGET_OPEN = 1, TARGET_LISTED = 2 };
enum direct_state { DIRECT_ESTABLISHED = 2, DIRECT_READY = 4, DIRECT_TOLD = 8 };
enum drawn_what { DRAWN_ENDPOINT = 1, DRAWN_ELSEWHERE = 2 };
enum happened { HAPPENED_OPENED = 1, HAPPENED_CLOSED = 2, HAPPENED_MISMATCH = 3, HAPPENED_READY = 4, HAPPENED_DRAINED = 5, HAPPENED_BARRED = 6 };
enum outcome { PROMOTED = 1, NOT_THERE, NOT_FIT, IN_DOUBT, DEMOTED, UNREAD };

#define OUTBOUND_PORT 15001
#define PLAINTEXT_PORT 15006
#define TUNNEL_PORT 15008
#define SPREAD6_FIRST 20480 /* IPv6 has one loopback address: captured connections are spread over these ports of ::1 */
#define SPREAD6_PORTS 1024
#define MAX_PODS 1024
#define REASONS 64          /* the kernel side owns 1-31 of mesh.reason, and counts policy's too */
#define LOST_EVENTS 0       /* counters[0]: events that the ring had no room for */
#define OPENED_FLOWS 63     /* counters[63]: direct flows that were established */
#define OVERHEAD 1024       /* a redirected message costs about this much memory, however small it is */
#define BUDGET (1 << 19)    /* unread charge from which a direction is native */
#define OVERRUNS 2          /* a reader that fell behind more often is left to TCP */
#define RECEIVES 16         /* of each end, none of which waited, before a flow is promoted */
#define STREAM (1 << 16)    /* bytes acknowledged to who sends a stream, and at least so many on average to a segment */
#define STREAM_SEGMENT 512
#define DOUBTS 5            /* a flow is not promoted that had more of them */

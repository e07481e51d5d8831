/* A connection as one of its two ends names it, in sockops programs. */

/* The connection as the side that is connected to sees it. */
static __always_inline void from_client(struct bpf_sock_ops *s, struct tuple *key) {
  if (s->family == AF_INET) {
    MAP4(key->local, s->remote_ip4);
    MAP4(key->remote, s->local_ip4);
  } else {
    COPY6(key->local, s->remote_ip6);
    COPY6(key->remote, s->local_ip6);
  }
  key->local_port = bpf_ntohl(s->remote_port);
  key->remote_port = s->local_port;
}

static __always_inline void from_server(struct bpf_sock_ops *s, struct tuple *key) {
  if (s->family == AF_INET) {
    MAP4(key->local, s->local_ip4);
    MAP4(key->remote, s->remote_ip4);
  } else {
    COPY6(key->local, s->local_ip6);
    COPY6(key->remote, s->remote_ip6);
  }
  key->local_port = s->local_port;
  key->remote_port = bpf_ntohl(s->remote_port);
}

/* To be called as bytes are acknowledged; and no more. */
static __always_inline void watch_bytes(struct bpf_sock_ops *s) {
  bpf_sock_ops_cb_flags_set(s, s->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_RTT_CB_FLAG);
}

static __always_inline void leave_bytes(struct bpf_sock_ops *s) {
  bpf_sock_ops_cb_flags_set(s, s->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_RTT_CB_FLAG);
}

/* Whether it has a meter that watch_nudges() came with. */
static __always_inline int is_metered(struct bpf_sock_ops *s) {
  return (s->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_PARSE_UNKNOWN_HDR_OPT_CB_FLAG) != 0;
}

/* For sockets that have a meter: their ends, and the agent's nudge. */
static __always_inline void watch_nudges(struct bpf_sock_ops *s) {
  bpf_sock_ops_cb_flags_set(s, s->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG |
                                   BPF_SOCK_OPS_PARSE_UNKNOWN_HDR_OPT_CB_FLAG);
}

static __always_inline void watch_close(struct bpf_sock_ops *s) {
  bpf_sock_ops_cb_flags_set(s, s->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* getpeername(), getsockname() and the address that accept() returns: the application sees what it asked for, and the
 * real client. Answers come from socket storage alone, so they outlive the pod's enrolment. */

static __always_inline struct asked *peer_shown(struct bpf_sock_addr *ctx) {
  struct asked *asked = sockets.sk_storage_get(ctx->sk, 0, 0);
  if (!asked) return 0;
  int service = asked->kind == DIRECT && asked->port;
  return service || asked->kind == CAPTURED || asked->kind == SERVED ? asked : 0;
}

static __always_inline struct asked *source_shown(struct bpf_sock_addr *ctx) {
  struct asked *asked = sockets.sk_storage_get(ctx->sk, 0, 0);
  return asked && asked->kind == CAPTURED && !is_any(asked->source) ? asked : 0;
}

int getpeername4(struct bpf_sock_addr *ctx) {
  struct asked *asked = peer_shown(ctx);
  if (!asked || !is_v4(asked->ip)) return 1;
  ctx->user_ip4 = asked->ip[3];
  ctx->user_port = bpf_htons((u16)asked->port);
  return 1;
}

int getpeername6(struct bpf_sock_addr *ctx) {
  struct asked *asked = peer_shown(ctx);
  if (!asked) return 1;
  ctx->user_ip6[0] = asked->ip[0];
  ctx->user_ip6[1] = asked->ip[1];
  ctx->user_ip6[2] = asked->ip[2];
  ctx->user_ip6[3] = asked->ip[3];
  ctx->user_port = bpf_htons((u16)asked->port);
  return 1;
}

int getsockname4(struct bpf_sock_addr *ctx) {
  struct asked *asked = source_shown(ctx);
  if (!asked || !is_v4(asked->source) || (bpf_ntohl(ctx->user_ip4) >> 24) != 127) return 1;
  ctx->user_ip4 = asked->source[3];
  return 1;
}

int getsockname6(struct bpf_sock_addr *ctx) {
  struct asked *asked = source_shown(ctx);
  u32 ip[4];
  if (!asked) return 1;
  COPY6(ip, ctx->user_ip6);
  if (!is_127(ip) && !is_one(ip)) return 1;
  ctx->user_ip6[0] = asked->source[0];
  ctx->user_ip6[1] = asked->source[1];
  ctx->user_ip6[2] = asked->source[2];
  ctx->user_ip6[3] = asked->source[3];
  return 1;
}

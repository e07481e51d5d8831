/* TCP Fast Open: data leaves with the SYN, before anybody has attested whose address it is sent to. Such a connection goes
 * through the agent. Where a socket says that it is one, the loader patches in from the running kernel's BTF. */

static __always_inline u64 fast_open_request_offset(void) {
  u64 offset;
  asm volatile("%0 = 0x4673744f704e5271 ll" : "=r"(offset)); /* "FstOpNRq": bytes */
  return offset;
}

static __always_inline u64 fast_open_connect_bit(void) {
  u64 bit;
  asm volatile("%0 = 0x4673744f704e4362 ll" : "=r"(bit)); /* "FstOpNCb": bits */
  return bit;
}

/* In connect(). A kernel that does not tell: as if it were. */
static __always_inline int opens_fast(struct bpf_sock_addr *ctx) {
  struct asked *asked = sockets.sk_storage_get(ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  u64 request = fast_open_request_offset(), bit = fast_open_connect_bit(), begun = 0;
  u8 flags = 0;
  if (!asked || !request) return 1;
  volatile u64 *number = &asked->key.netns;                /* a pointer with an offset is no argument, a number is */
  *number = (u64)ctx->sk;
  u64 sk = *number;
  if (bpf_probe_read_kernel(&begun, sizeof(begun), (void *)(sk + request))) return 1;
  if (bpf_probe_read_kernel(&flags, sizeof(flags), (void *)(sk + bit / 8))) return 1;
  return begun || flags & (1 << bit % 8);
}

/* TCP's sequence numbers, read where the running kernel's BTF says that they are: the loader patches the offsets in. */

static __always_inline u64 write_seq_offset(void) {
  u64 offset;
  asm volatile("%0 = 0x5772697465536571 ll" : "=r"(offset)); /* "WriteSeq" */
  return offset;
}

static __always_inline u64 copied_seq_offset(void) {
  u64 offset;
  asm volatile("%0 = 0x436f706965645371 ll" : "=r"(offset)); /* "CopiedSq" */
  return offset;
}

static __always_inline u64 rcv_nxt_offset(void) {
  u64 offset;
  asm volatile("%0 = 0x5263764e65787421 ll" : "=r"(offset)); /* "RcvNext!" */
  return offset;
}

static __always_inline u64 snd_una_offset(void) {
  u64 offset;
  asm volatile("%0 = 0x536e64556e61636b ll" : "=r"(offset)); /* "SndUnack" */
  return offset;
}

/* 0: it cannot be read. */
static __always_inline int read_at(u64 address, u32 *seq) {
  return !bpf_probe_read_kernel(seq, sizeof(*seq), (void *)address);
}

/* What the application has given to TCP. */
static __always_inline int read_written(u64 sk, u32 *seq) {
  return read_at(sk + write_seq_offset(), seq);
}

/* What the application has had from TCP, by whichever call; redirected bytes do not count. */
static __always_inline int read_copied(u64 sk, u32 *seq) {
  return read_at(sk + copied_seq_offset(), seq);
}

/* Bytes by TCP that no receive accounts for: read by splice() or the like, or by a receive that is just returning. Only
 * of a socket that no byte was ever redirected to. */
static __always_inline u32 unaccounted(const struct meter *meter) {
  u32 copied = 0;
  if (meter->moved || !read_copied(meter->own, &copied)) return 0;
  return copied - meter->first - (u32)meter->bytes;
}

/* Addresses and what follows from them. Context words are read one by one and volatile: the verifier refuses the wider
 * loads that the compiler would make of them. */

#define WORD(x) (*(volatile u32 *)&(x))
#define COPY6(to, from) do { to[0] = WORD(from[0]); to[1] = WORD(from[1]); to[2] = WORD(from[2]); to[3] = WORD(from[3]); } while (0)
#define MOVE6(to, from) do { to[0] = from[0]; to[1] = from[1]; to[2] = from[2]; to[3] = from[3]; } while (0)
#define MAP4(to, ip4) do { to[0] = 0; to[1] = 0; to[2] = bpf_htonl(0xffff); to[3] = (ip4); } while (0)

static __always_inline int is_v4(const u32 *ip) { return !ip[0] && !ip[1] && ip[2] == bpf_htonl(0xffff); }
static __always_inline int is_127(const u32 *ip) { return is_v4(ip) && (bpf_ntohl(ip[3]) >> 24) == 127; }
static __always_inline int is_one(const u32 *ip) { return !ip[0] && !ip[1] && !ip[2] && ip[3] == bpf_htonl(1); }
static __always_inline int is_link_local(const u32 *ip) { return (bpf_ntohl(ip[0]) & 0xffc00000) == 0xfe800000; } /* IPv6 */
static __always_inline int is_any(const u32 *ip) { return (is_v4(ip) || (!ip[0] && !ip[1] && !ip[2])) && !ip[3]; }

/* connect() to the unspecified address is connect() to oneself */
static __always_inline int is_loopback(const u32 *ip) { return is_127(ip) || is_one(ip) || is_any(ip); }
static __always_inline int is_same(const u32 *a, const u32 *b) {
  return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* AES-GCM of Intel's libipsec-mb (1.3 in Debian 12), if it was there when this was compiled and is there now. */
#pragma once
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

struct gcm_key_data;
struct gcm_context_data;

/* Of one key size. What has two is for decryption and for encryption. Sizes in bytes; a key's data stands at an address
 * that GCM_ALIGNMENT divides. */
struct gcm {
  size_t key, key_data, state;
  void (*expand)(const void *, struct gcm_key_data *);
  void (*begin)(const struct gcm_key_data *, struct gcm_context_data *, const uint8_t *, const uint8_t *, uint64_t);
  void (*update[2])(const struct gcm_key_data *, struct gcm_context_data *, uint8_t *, const uint8_t *, uint64_t);
  void (*finish[2])(const struct gcm_key_data *, struct gcm_context_data *, uint8_t *, uint64_t);
};

enum { GCM_ALIGNMENT = 64 };

#if defined(__x86_64__) && __has_include(<intel-ipsec-mb.h>)
#include <intel-ipsec-mb.h>

/* For keys of 128 and of 256 bits. 0: the library is missing, or of another version, or the processor lacks what makes it
 * worth its while. It stays loaded; its table of all it can do is not needed any more. */
static int gcm_find(struct gcm found[2]) {
  const uint64_t wanted = IMB_FEATURE_AVX512_SKX | IMB_FEATURE_VAES | IMB_FEATURE_VPCLMULQDQ;
  void *library = dlopen("libIPSec_MB.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) return 0;
  unsigned (*version)(void) = (unsigned (*)(void))dlsym(library, "imb_get_version");
  IMB_MGR *(*allocate)(uint64_t) = (IMB_MGR * (*)(uint64_t)) dlsym(library, "alloc_mb_mgr");
  void (*prepare)(IMB_MGR *, IMB_ARCH *) = (void (*)(IMB_MGR *, IMB_ARCH *))dlsym(library, "init_mb_mgr_auto");
  void (*release)(IMB_MGR *) = (void (*)(IMB_MGR *))dlsym(library, "free_mb_mgr");
  if (!version || !allocate || !prepare || !release || version() != IMB_VERSION_NUM) return 0;
  IMB_MGR *all = allocate(0);
  if (!all) return 0;
  prepare(all, NULL);
  int fast = (all->features & wanted) == wanted;
  found[0] = (struct gcm){16, sizeof(struct gcm_key_data), sizeof(struct gcm_context_data), all->gcm128_pre, all->gcm128_init,
                          {all->gcm128_dec_update, all->gcm128_enc_update}, {all->gcm128_dec_finalize, all->gcm128_enc_finalize}};
  found[1] = (struct gcm){32, sizeof(struct gcm_key_data), sizeof(struct gcm_context_data), all->gcm256_pre, all->gcm256_init,
                          {all->gcm256_dec_update, all->gcm256_enc_update}, {all->gcm256_dec_finalize, all->gcm256_enc_finalize}};
  release(all);
  return fast;
}
#else
static int gcm_find(struct gcm found[2]) {
  (void)found;
  return 0;
}
#endif

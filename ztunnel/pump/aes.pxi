# AES-GCM on processors with VAES, for an OpenSSL that does not use it yet.
#
# OpenSSL does from 3.1 on. With 3.0, Debian 12's, AES takes three times as long, and is most of what a stream costs in user
# space. Where libipsec-mb is installed, AES-GCM is its work instead, by a provider (provider-cipher(7)) in a library
# context of the tunnels' own: nobody else in the process gets it. Keys, nonces, records and certificates are OpenSSL's in
# any case. Where it is missing, nothing changes but the speed.

cdef enum:
    NONCE = 12               # bytes; RFC 8446 5.3
    TAG = 16
    MOST_AAD = 64            # a record has five

cdef OSSL_LIB_CTX *tls_library = NULL   # NULL: OpenSSL's usual one
cdef const char *tls_wanted = NULL      # property query(7)


cdef struct Aes:
    # A cipher's context, as OpenSSL's record layer uses it: a nonce, additional data, a record in one piece or several, the
    # tag. A nonce serves once.
    const gcm *calls
    bint encrypts
    bint keyed
    bint fresh               # there is a nonce that was not used
    bint begun
    bint tagged
    uint8_t nonce[NONCE]
    uint8_t tag[TAG]
    uint8_t aad[MOST_AAD]
    size_t aad_length
    gcm_context_data *state
    gcm_key_data *key


cdef gcm aes_calls[2]
cdef OSSL_DISPATCH aes_functions[2][12]
cdef OSSL_DISPATCH aes_provider_functions[2]
cdef OSSL_ALGORITHM aes_algorithms[3]


cdef inline size_t aligned(size_t size) noexcept nogil:
    return (size + GCM_ALIGNMENT - 1) & ~<size_t>(GCM_ALIGNMENT - 1)


cdef size_t aes_size(const gcm *calls) noexcept nogil:
    return aligned(sizeof(Aes)) + aligned(calls.state) + aligned(calls.key_data)


cdef void *aes_new(const gcm *calls) noexcept nogil:
    cdef Aes *self = <Aes *>aligned_alloc(GCM_ALIGNMENT, aes_size(calls))
    if self == NULL:
        return NULL
    memset(self, 0, aes_size(calls))
    self.calls = calls
    self.state = <gcm_context_data *>(<uint8_t *>self + aligned(sizeof(Aes)))
    self.key = <gcm_key_data *>(<uint8_t *>self.state + aligned(calls.state))
    return self


cdef void *aes_new_128(void *_) noexcept nogil:
    return aes_new(&aes_calls[0])


cdef void *aes_new_256(void *_) noexcept nogil:
    return aes_new(&aes_calls[1])


cdef void aes_free(void *of) noexcept nogil:
    if of != NULL:
        OPENSSL_cleanse(of, aes_size((<Aes *>of).calls))
        free(of)


cdef int aes_init(
    Aes *self, bint encrypts, const uint8_t *key, size_t key_length, const uint8_t *nonce, size_t nonce_length,
    const OSSL_PARAM *params
) noexcept nogil:
    """Key and nonce come together or one after the other, as EVP_CipherInit_ex(3) has it."""
    self.encrypts = encrypts
    self.begun = self.tagged = False
    self.aad_length = 0
    if key != NULL:
        if key_length != self.calls.key:
            return 0
        self.calls.expand(key, self.key)
        self.keyed = True
    if nonce != NULL:
        if nonce_length != NONCE:
            return 0
        memcpy(self.nonce, nonce, NONCE)
        self.fresh = True
    return aes_set(self, params)


cdef int aes_encrypt(
    void *of, const uint8_t *key, size_t key_length, const uint8_t *nonce, size_t length, const OSSL_PARAM *params
) noexcept nogil:
    return aes_init(<Aes *>of, True, key, key_length, nonce, length, params)


cdef int aes_decrypt(
    void *of, const uint8_t *key, size_t key_length, const uint8_t *nonce, size_t length, const OSSL_PARAM *params
) noexcept nogil:
    return aes_init(<Aes *>of, False, key, key_length, nonce, length, params)


cdef bint aes_begin(Aes *self) noexcept nogil:
    if not self.begun:
        if not self.keyed or not self.fresh:
            return False
        self.fresh, self.begun = False, True
        self.calls.begin(self.key, self.state, self.nonce, self.aad, self.aad_length)
    return True


cdef int aes_update(
    void *of, uint8_t *into, size_t *written, size_t room, const uint8_t *data, size_t length
) noexcept nogil:
    cdef Aes *self = <Aes *>of
    written[0] = length
    if into == NULL:
        if self.begun or length > MOST_AAD - self.aad_length:
            return 0
        memcpy(self.aad + self.aad_length, data, length)
        self.aad_length += length
        return 1
    if room < length or not aes_begin(self):
        return 0
    self.calls.update[self.encrypts](self.key, self.state, into, data, length)
    return 1


cdef int aes_finish(void *of, uint8_t *into, size_t *written, size_t room) noexcept nogil:
    """What was decrypted is worth nothing before this has said 1."""
    cdef Aes *self = <Aes *>of
    cdef uint8_t tag[TAG]
    written[0] = 0
    if not self.encrypts and not self.tagged or not aes_begin(self):
        return 0
    self.calls.finish[self.encrypts](self.key, self.state, tag, TAG)
    self.begun = False
    self.aad_length = 0
    self.tagged = self.encrypts
    if not self.encrypts:
        return CRYPTO_memcmp(tag, self.tag, TAG) == 0
    memcpy(self.tag, tag, TAG)
    return 1


cdef int aes_set(void *of, const OSSL_PARAM *params) noexcept nogil:
    cdef Aes *self = <Aes *>of
    cdef const OSSL_PARAM *param
    cdef size_t length = 0
    if params == NULL:
        return 1
    param = OSSL_PARAM_locate_const(params, OSSL_CIPHER_PARAM_AEAD_TAG)
    if param != NULL:
        if self.encrypts or param.data == NULL or param.data_size != TAG:
            return 0
        memcpy(self.tag, param.data, TAG)
        self.tagged = True
    param = OSSL_PARAM_locate_const(params, OSSL_CIPHER_PARAM_AEAD_IVLEN)
    if param != NULL and (OSSL_PARAM_get_size_t(param, &length) != 1 or length != NONCE):
        return 0
    param = OSSL_PARAM_locate_const(params, OSSL_CIPHER_PARAM_KEYLEN)
    return param == NULL or OSSL_PARAM_get_size_t(param, &length) == 1 and length == self.calls.key


cdef bint aes_say(OSSL_PARAM *params, const char *name, size_t number) noexcept nogil:
    """False: it was asked for, and there was no room for the answer."""
    cdef OSSL_PARAM *param = OSSL_PARAM_locate(params, name)
    return param == NULL or OSSL_PARAM_set_size_t(param, number) == 1


cdef int aes_get(void *of, OSSL_PARAM *params) noexcept nogil:
    cdef Aes *self = <Aes *>of
    cdef OSSL_PARAM *param = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_AEAD_TAG)
    if param != NULL:
        if not self.encrypts or not self.tagged or param.data_size > TAG:
            return 0
        if OSSL_PARAM_set_octet_string(param, self.tag, param.data_size) != 1:
            return 0
    return (aes_say(params, OSSL_CIPHER_PARAM_KEYLEN, self.calls.key)
            and aes_say(params, OSSL_CIPHER_PARAM_IVLEN, NONCE) and aes_say(params, OSSL_CIPHER_PARAM_AEAD_TAGLEN, TAG))


cdef int aes_describe(OSSL_PARAM *params, size_t key) noexcept nogil:
    cdef OSSL_PARAM *param = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_MODE)
    if param != NULL and OSSL_PARAM_set_uint(param, EVP_CIPH_GCM_MODE) != 1:
        return 0
    param = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_AEAD)
    if param != NULL and OSSL_PARAM_set_int(param, 1) != 1:
        return 0
    param = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_CUSTOM_IV)
    if param != NULL and OSSL_PARAM_set_int(param, 1) != 1:
        return 0
    return (aes_say(params, OSSL_CIPHER_PARAM_KEYLEN, key) and aes_say(params, OSSL_CIPHER_PARAM_IVLEN, NONCE)
            and aes_say(params, OSSL_CIPHER_PARAM_BLOCK_SIZE, 1))


cdef int aes_describe_128(OSSL_PARAM *params) noexcept nogil:
    return aes_describe(params, aes_calls[0].key)


cdef int aes_describe_256(OSSL_PARAM *params) noexcept nogil:
    return aes_describe(params, aes_calls[1].key)


# The provider


cdef void aes_function(OSSL_DISPATCH **at, int number, void (*function)() noexcept nogil) noexcept nogil:
    at[0].function_id, at[0].function = number, function
    at[0] += 1


cdef void aes_cipher(OSSL_DISPATCH *at, void *new, void *describe) noexcept nogil:
    aes_function(&at, OSSL_FUNC_CIPHER_NEWCTX, <void (*)() noexcept nogil>new)
    aes_function(&at, OSSL_FUNC_CIPHER_FREECTX, <void (*)() noexcept nogil>aes_free)
    aes_function(&at, OSSL_FUNC_CIPHER_ENCRYPT_INIT, <void (*)() noexcept nogil>aes_encrypt)
    aes_function(&at, OSSL_FUNC_CIPHER_DECRYPT_INIT, <void (*)() noexcept nogil>aes_decrypt)
    aes_function(&at, OSSL_FUNC_CIPHER_UPDATE, <void (*)() noexcept nogil>aes_update)
    aes_function(&at, OSSL_FUNC_CIPHER_FINAL, <void (*)() noexcept nogil>aes_finish)
    aes_function(&at, OSSL_FUNC_CIPHER_GET_PARAMS, <void (*)() noexcept nogil>describe)
    aes_function(&at, OSSL_FUNC_CIPHER_GET_CTX_PARAMS, <void (*)() noexcept nogil>aes_get)
    aes_function(&at, OSSL_FUNC_CIPHER_SET_CTX_PARAMS, <void (*)() noexcept nogil>aes_set)


cdef const OSSL_ALGORITHM *aes_query(void *_, int operation, int *uncached) noexcept nogil:
    uncached[0] = 0
    return aes_algorithms if operation == OSSL_OP_CIPHER else NULL


cdef int aes_provide(
    const OSSL_CORE_HANDLE *_, const OSSL_DISPATCH *core, const OSSL_DISPATCH **functions, void **context
) noexcept nogil:
    functions[0] = aes_provider_functions
    return 1


cdef void aes_prepare() noexcept nogil:
    """Once per process. Whoever has turned on FIPS wants the algorithms of that provider and no others."""
    global tls_library, tls_wanted
    cdef OSSL_DISPATCH *at = aes_provider_functions
    cdef OSSL_LIB_CTX *library
    cdef int i
    if OpenSSL_version_num() >= 0x30100000 or EVP_default_properties_is_fips_enabled(NULL) or not gcm_find(aes_calls):
        return
    aes_cipher(aes_functions[0], <void *>aes_new_128, <void *>aes_describe_128)
    aes_cipher(aes_functions[1], <void *>aes_new_256, <void *>aes_describe_256)
    aes_function(&at, OSSL_FUNC_PROVIDER_QUERY_OPERATION, <void (*)() noexcept nogil>aes_query)
    aes_algorithms[0].algorithm_names = b"AES-128-GCM:id-aes128-GCM:2.16.840.1.101.3.4.1.6"
    aes_algorithms[1].algorithm_names = b"AES-256-GCM:id-aes256-GCM:2.16.840.1.101.3.4.1.46"
    for i in range(2):
        aes_algorithms[i].property_definition = b"provider=gossamer"
        aes_algorithms[i].implementation = aes_functions[i]
    library = OSSL_LIB_CTX_new()
    if (library != NULL and OSSL_PROVIDER_load(library, b"default") != NULL
            and OSSL_PROVIDER_add_builtin(library, b"gossamer", aes_provide) == 1
            and OSSL_PROVIDER_load(library, b"gossamer") != NULL):
        tls_library, tls_wanted = library, b"?provider=gossamer"
    else:
        OSSL_LIB_CTX_free(library)


def aes() -> str:
    """Whose AES-GCM the tunnels use, once there is a Pump."""
    return "libipsec-mb" if tls_library != NULL else "OpenSSL"

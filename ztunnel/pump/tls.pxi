# TLS 1.3 with client certificates: contexts from DER, sessions on memory, identities of the peer.
#
# istio-facts 1.3: ALPN exactly h2, no SNI, no resumption, chains to the mesh's roots; OpenSSL checks the extended key
# usage for the role.

cdef const char *SUITES = b"TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256"
cdef BIO_METHOD *wire_method = NULL


cdef int wire_write(BIO *bio, const char *data, int length) noexcept nogil:
    """What OpenSSL sends waits in the socket's own buffer: many records, one write."""
    cdef Tunnel *tunnel = <Tunnel *>BIO_get_data(bio)
    BIO_clear_retry_flags(bio)
    if length <= 0 or buffer_append(&tunnel.socket.out, data, length) != 0:
        return -1
    return length


cdef int wire_read(BIO *bio, char *into, int length) noexcept nogil:
    """What was just received; a session takes all of it, an incomplete record too."""
    cdef Tunnel *tunnel = <Tunnel *>BIO_get_data(bio)
    cdef Loop *loop = tunnel.socket.loop
    cdef size_t count = min(<size_t>length, loop.feed_left)
    BIO_clear_retry_flags(bio)
    if count == 0:
        BIO_set_retry_read(bio)
        return -1
    memcpy(into, loop.feed, count)
    loop.feed += count
    loop.feed_left -= count
    return <int>count


cdef long wire_ctrl(BIO *bio, int command, long number, void *pointer) noexcept nogil:
    return 1 if command == BIO_CTRL_FLUSH else 0


cdef int wire_prepare() noexcept nogil:
    """Once per process; 0, or -1."""
    global wire_method
    if wire_method == NULL:
        wire_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, b"gossamer")
        if wire_method == NULL:
            return -1
        # Buffers of a stream come and go many thousand times a second: from the heap, not from the kernel.
        mallopt(M_MMAP_THRESHOLD, 1 << 20)
        mallopt(M_TRIM_THRESHOLD, 8 << 20)
        BIO_meth_set_write(wire_method, wire_write)
        BIO_meth_set_read(wire_method, wire_read)
        BIO_meth_set_ctrl(wire_method, wire_ctrl)
        aes_prepare()
    return 0


cdef SSL *tls_session(SSL_CTX *context, bint server, Tunnel *tunnel) noexcept nogil:
    """NULL without memory. It keeps the context alive."""
    cdef SSL *ssl = SSL_new(context)
    cdef BIO *bio = BIO_new(wire_method)
    if ssl == NULL or bio == NULL:
        if ssl != NULL:
            SSL_free(ssl)
        if bio != NULL:
            BIO_free(bio)
        return NULL
    BIO_set_data(bio, tunnel)
    BIO_set_init(bio, 1)
    SSL_set_bio(ssl, bio, bio)
    if server:
        SSL_set_accept_state(ssl)
    else:
        SSL_set_connect_state(ssl)
    return ssl


cdef void tls_error(SSL *ssl, char *into, size_t size) noexcept nogil:
    """The last error of this thread, in words."""
    cdef long verified = SSL_get_verify_result(ssl)
    cdef const char *reason
    if verified != X509_V_OK:
        snprintf(into, size, b"certificate verify failed: %s", X509_verify_cert_error_string(verified))
        return
    reason = ERR_reason_error_string(ERR_peek_last_error())
    snprintf(into, size, b"%s", reason if reason != NULL else <const char *>b"unexpected end")


cdef bint tls_agreed(SSL *ssl) noexcept nogil:
    """On ALPN h2."""
    cdef const unsigned char *chosen = NULL
    cdef unsigned int length = 0
    SSL_get0_alpn_selected(ssl, &chosen, &length)
    return length == 2 and memcmp(chosen, b"h2", 2) == 0


cdef int tls_choose(
    SSL *ssl, const unsigned char **chosen, unsigned char *length, const unsigned char *offered, unsigned int size,
    void *_
) noexcept nogil:
    cdef unsigned int at = 0
    while at < size:
        if offered[at] == 2 and at + 2 < size and memcmp(offered + at + 1, b"h2", 2) == 0:
            chosen[0] = offered + at + 1
            length[0] = 2
            return SSL_TLSEXT_ERR_OK
        at += 1 + offered[at]
    return SSL_TLSEXT_ERR_NOACK  # the peer hears of it after the handshake, by a close


cdef int tls_peer(
    SSL *ssl, const char *trust_domain, const char *expected, char **peer, char *why, size_t size
) noexcept nogil:
    """The identity that the peer's verified certificate proves, for the caller to free, or PEER_IDENTITY and why not.

    With `expected` (client side): the URI SAN that is one of these lines. With `trust_domain` (server side): the first
    URI SAN of SPIFFE's form, if one of them is of this trust domain.
    """
    cdef X509 *certificate = SSL_get1_peer_certificate(ssl)
    cdef GENERAL_NAMES *names = NULL
    cdef GENERAL_NAME *name
    cdef const unsigned char *uri
    cdef const char *first = NULL
    cdef size_t length, domain, first_length = 0, used = 0
    cdef bint welcome = False
    cdef int i
    cdef char proved[URI_TEXT]
    proved[0] = 0
    if certificate != NULL:
        names = <GENERAL_NAMES *>X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL)
    for i in range(min(sk_GENERAL_NAME_num(names), <int>MAX_URIS) if names != NULL else 0):
        name = sk_GENERAL_NAME_value(names, i)
        if name.type != GEN_URI:
            continue
        uri = ASN1_STRING_get0_data(name.d.uniformResourceIdentifier)
        length = ASN1_STRING_length(name.d.uniformResourceIdentifier)
        if memchr(uri, 0, length) == NULL and used + 1 < sizeof(proved):
            used += snprintf(
                proved + used, sizeof(proved) - used, b"%s%.*s", <const char *>(b", " if used else b""),
                <int>min(length, <size_t>300), uri)
            used = min(used, sizeof(proved) - 1)
        domain = spiffe_trust_domain(uri, length)
        if domain == 0:
            continue
        if expected != NULL:
            if listed(expected, uri, length):
                first, first_length, welcome = <const char *>uri, length, True
                break
        else:
            if first == NULL:
                first, first_length = <const char *>uri, length
            welcome = welcome or (strlen(trust_domain) == domain and memcmp(uri + 9, trust_domain, domain) == 0)
    if welcome:
        peer[0] = copy_text(first, first_length)
    elif expected != NULL:
        snprintf(why, size, b"the peer proved %s, expected %s", <const char *>proved if used else <const char *>b"no SPIFFE id",
                 expected)
    elif first == NULL:
        snprintf(why, size, b"the peer's certificate has no SPIFFE URI SAN")
    else:
        snprintf(why, size, b"%.*s is not of trust domain %s", <int>first_length, first, trust_domain)
    if names != NULL:
        GENERAL_NAMES_free(names)
    if certificate != NULL:
        X509_free(certificate)
    return OK if welcome else PEER_IDENTITY


# Contexts


cdef struct Contexts:
    # Both roles of one pod under one certificate. Made by Python, given to each thread with an order; freed by the last
    # to let go.
    long holders             # atomic
    SSL_CTX *server
    SSL_CTX *client
    char *identity


cdef void contexts_free(Contexts *self) noexcept nogil:
    if self == NULL:
        return
    if self.server != NULL:
        SSL_CTX_free(self.server)
    if self.client != NULL:
        SSL_CTX_free(self.client)
    free(self.identity)
    free(self)


cdef void contexts_release(Contexts *self) noexcept nogil:
    if self != NULL and atomic_add(&self.holders, -1, ACQ_REL) == 0:
        contexts_free(self)


cdef SSL_CTX *context_new(bint server) noexcept nogil:
    cdef SSL_CTX *context = SSL_CTX_new_ex(
        tls_library, tls_wanted, TLS_server_method() if server else TLS_client_method())
    cdef int verify = SSL_VERIFY_PEER
    if context == NULL:
        return NULL
    SSL_CTX_set_security_level(context, 2)
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF)
    SSL_CTX_set_options(context, SSL_OP_NO_TICKET)
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER)
    if server:
        verify |= SSL_VERIFY_FAIL_IF_NO_PEER_CERT
        SSL_CTX_set_num_tickets(context, 0)
        SSL_CTX_set_alpn_select_cb(context, tls_choose, NULL)
    elif SSL_CTX_set_alpn_protos(context, b"\x02h2", 3) != 0:
        SSL_CTX_free(context)
        return NULL
    SSL_CTX_set_verify(context, verify, NULL)
    if SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 or SSL_CTX_set_ciphersuites(context, SUITES) != 1:
        SSL_CTX_free(context)
        return NULL
    return context


cdef X509 *certificate_of(bytes der) except? NULL:
    """NULL: not a certificate, or more than one."""
    cdef const unsigned char *at = <const unsigned char *>PyBytes_AS_STRING(der)
    cdef const unsigned char *end = at + len(der)
    cdef X509 *certificate = X509_new_ex(tls_library, tls_wanted)
    if certificate == NULL:
        raise MemoryError
    if d2i_X509(&certificate, &at, len(der)) == NULL or at != end:
        X509_free(certificate)
        return NULL
    return certificate


cdef str openssl_error():
    cdef const char *reason = ERR_reason_error_string(ERR_peek_last_error())
    return reason.decode() if reason != NULL else "not DER"


cdef int context_load(SSL_CTX *context, credentials) except -1:
    """Chain, key and roots; ValueError names what is not usable."""
    cdef X509 *certificate
    cdef EVP_PKEY *key
    cdef const unsigned char *at
    cdef int failed
    name = credentials.identity
    unusable = f"{name}: certificate chain and key are not usable together"
    ERR_clear_error()
    for der in credentials.roots:
        certificate = certificate_of(der)
        if certificate == NULL:
            raise ValueError(f"{name}: a root certificate is not DER X.509: {openssl_error()}")
        failed = X509_STORE_add_cert(SSL_CTX_get_cert_store(context), certificate) != 1
        X509_free(certificate)
        if failed:
            raise ValueError(f"{name}: a root certificate cannot be used: {openssl_error()}")
    for i, der in enumerate(credentials.chain):
        certificate = certificate_of(der)
        if certificate == NULL:
            raise ValueError(f"{unusable}: certificate {i} of the chain is not DER X.509: {openssl_error()}")
        if i == 0:
            failed = SSL_CTX_use_certificate(context, certificate) != 1
        else:
            failed = SSL_CTX_add1_chain_cert(context, certificate) != 1
        X509_free(certificate)
        if failed:
            raise ValueError(f"{unusable}: {openssl_error()}")
    at = <const unsigned char *>PyBytes_AS_STRING(credentials.key)
    key = d2i_AutoPrivateKey_ex(NULL, &at, len(credentials.key), tls_library, tls_wanted)
    if key == NULL:
        raise ValueError(f"{unusable}: the key is not PKCS#8 DER: {openssl_error()}")
    failed = SSL_CTX_use_PrivateKey(context, key) != 1 or SSL_CTX_check_private_key(context) != 1
    EVP_PKEY_free(key)
    if failed:
        raise ValueError(f"{unusable}: {openssl_error()}")
    return 0


cdef Contexts *contexts_new(credentials) except NULL:
    """ValueError: chain, key or roots are not usable, and which. Resumption needs no thought: there is none."""
    cdef Contexts *self
    cdef bytes identity = str(credentials.identity).encode()
    if not credentials.roots:
        raise ValueError(f"{credentials.identity}: no root certificate: nobody could be trusted")
    if not credentials.chain:
        raise ValueError(f"{credentials.identity}: no certificate")
    self = <Contexts *>make(sizeof(Contexts))
    try:
        self.server, self.client = context_new(True), context_new(False)
        if self.server == NULL or self.client == NULL:
            raise MemoryError
        context_load(self.server, credentials)
        context_load(self.client, credentials)
        self.identity = copy_text(identity, len(identity))
    except BaseException:
        contexts_free(self)
        raise
    return self

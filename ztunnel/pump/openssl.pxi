# What is used of OpenSSL 3: declarations only.

cdef extern from "openssl/ssl.h" nogil:
    ctypedef struct SSL:
        pass
    ctypedef struct SSL_CTX:
        pass
    ctypedef struct SSL_METHOD:
        pass
    ctypedef struct X509_STORE:
        pass
    int TLS1_3_VERSION, SSL_VERIFY_PEER, SSL_VERIFY_FAIL_IF_NO_PEER_CERT, SSL_SESS_CACHE_OFF, SSL_OP_NO_TICKET
    int SSL_MODE_RELEASE_BUFFERS, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
    int SSL_ERROR_WANT_READ, SSL_ERROR_ZERO_RETURN, SSL_TLSEXT_ERR_OK, SSL_TLSEXT_ERR_NOACK
    const SSL_METHOD *TLS_server_method()
    const SSL_METHOD *TLS_client_method()
    SSL_CTX *SSL_CTX_new(const SSL_METHOD *)
    void SSL_CTX_free(SSL_CTX *)
    int SSL_CTX_set_min_proto_version(SSL_CTX *, int)
    int SSL_CTX_set_ciphersuites(SSL_CTX *, const char *)
    void SSL_CTX_set_security_level(SSL_CTX *, int)
    void SSL_CTX_set_verify(SSL_CTX *, int, void *)
    long SSL_CTX_set_session_cache_mode(SSL_CTX *, long)
    uint64_t SSL_CTX_set_options(SSL_CTX *, uint64_t)
    long SSL_CTX_set_mode(SSL_CTX *, long)
    int SSL_CTX_set_num_tickets(SSL_CTX *, size_t)
    int SSL_CTX_set_alpn_protos(SSL_CTX *, const unsigned char *, unsigned int)
    void SSL_CTX_set_alpn_select_cb(
        SSL_CTX *,
        int (*)(SSL *, const unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *) noexcept nogil,
        void *)
    int SSL_CTX_use_certificate(SSL_CTX *, X509 *)
    int SSL_CTX_add1_chain_cert(SSL_CTX *, X509 *)
    int SSL_CTX_use_PrivateKey(SSL_CTX *, EVP_PKEY *)
    int SSL_CTX_check_private_key(const SSL_CTX *)
    X509_STORE *SSL_CTX_get_cert_store(const SSL_CTX *)
    SSL *SSL_new(SSL_CTX *)
    void SSL_free(SSL *)
    void SSL_set_bio(SSL *, BIO *, BIO *)
    void SSL_set_accept_state(SSL *)
    void SSL_set_connect_state(SSL *)
    int SSL_do_handshake(SSL *)
    int SSL_read(SSL *, void *, int)
    int SSL_write(SSL *, const void *, int)
    int SSL_shutdown(SSL *)
    int SSL_get_error(const SSL *, int)
    long SSL_get_verify_result(const SSL *)
    void SSL_get0_alpn_selected(const SSL *, const unsigned char **, unsigned int *)
    X509 *SSL_get1_peer_certificate(const SSL *)

cdef extern from "openssl/x509.h" nogil:
    ctypedef struct X509:
        pass
    ctypedef struct EVP_PKEY:
        pass
    X509 *d2i_X509(X509 **, const unsigned char **, long)
    void X509_free(X509 *)
    EVP_PKEY *d2i_AutoPrivateKey(EVP_PKEY **, const unsigned char **, long)
    void EVP_PKEY_free(EVP_PKEY *)
    int X509_STORE_add_cert(X509_STORE *, X509 *)
    const char *X509_verify_cert_error_string(long)
    long X509_V_OK

cdef extern from "openssl/x509v3.h" nogil:
    ctypedef struct ASN1_STRING:
        pass
    ctypedef union general_name_value:
        ASN1_STRING *uniformResourceIdentifier
    ctypedef struct GENERAL_NAME:
        int type
        general_name_value d
    ctypedef struct GENERAL_NAMES:
        pass
    int NID_subject_alt_name, GEN_URI
    void *X509_get_ext_d2i(const X509 *, int, int *, int *)
    void GENERAL_NAMES_free(GENERAL_NAMES *)
    int sk_GENERAL_NAME_num(const GENERAL_NAMES *)
    GENERAL_NAME *sk_GENERAL_NAME_value(const GENERAL_NAMES *, int)
    const unsigned char *ASN1_STRING_get0_data(const ASN1_STRING *)
    int ASN1_STRING_length(const ASN1_STRING *)

cdef extern from "openssl/bio.h" nogil:
    ctypedef struct BIO:
        pass
    ctypedef struct BIO_METHOD:
        pass
    int BIO_TYPE_SOURCE_SINK, BIO_CTRL_FLUSH
    int BIO_get_new_index()
    BIO_METHOD *BIO_meth_new(int, const char *)
    int BIO_meth_set_write(BIO_METHOD *, int (*)(BIO *, const char *, int) noexcept nogil)
    int BIO_meth_set_read(BIO_METHOD *, int (*)(BIO *, char *, int) noexcept nogil)
    int BIO_meth_set_ctrl(BIO_METHOD *, long (*)(BIO *, int, long, void *) noexcept nogil)
    BIO *BIO_new(const BIO_METHOD *)
    void BIO_free(BIO *)
    void BIO_set_data(BIO *, void *)
    void *BIO_get_data(BIO *)
    void BIO_set_init(BIO *, int)
    void BIO_set_retry_read(BIO *)
    void BIO_clear_retry_flags(BIO *)

cdef extern from "openssl/err.h" nogil:
    void ERR_clear_error()
    unsigned long ERR_peek_last_error()
    const char *ERR_reason_error_string(unsigned long)

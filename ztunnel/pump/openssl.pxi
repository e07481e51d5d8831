# What is used of OpenSSL 3: declarations only.

cdef extern from "openssl/crypto.h" nogil:
    ctypedef struct OSSL_LIB_CTX:
        pass
    OSSL_LIB_CTX *OSSL_LIB_CTX_new()
    void OSSL_LIB_CTX_free(OSSL_LIB_CTX *)
    unsigned long OpenSSL_version_num()
    void OPENSSL_cleanse(void *, size_t)
    int CRYPTO_memcmp(const void *, const void *, size_t)

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
    SSL_CTX *SSL_CTX_new_ex(OSSL_LIB_CTX *, const char *, const SSL_METHOD *)
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
    X509 *X509_new_ex(OSSL_LIB_CTX *, const char *)
    X509 *d2i_X509(X509 **, const unsigned char **, long)
    void X509_free(X509 *)
    EVP_PKEY *d2i_AutoPrivateKey_ex(EVP_PKEY **, const unsigned char **, long, OSSL_LIB_CTX *, const char *)
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

cdef extern from "openssl/core_dispatch.h" nogil:
    int OSSL_OP_CIPHER, OSSL_FUNC_PROVIDER_QUERY_OPERATION
    int OSSL_FUNC_CIPHER_NEWCTX, OSSL_FUNC_CIPHER_FREECTX, OSSL_FUNC_CIPHER_ENCRYPT_INIT, OSSL_FUNC_CIPHER_DECRYPT_INIT
    int OSSL_FUNC_CIPHER_UPDATE, OSSL_FUNC_CIPHER_FINAL, OSSL_FUNC_CIPHER_GET_PARAMS
    int OSSL_FUNC_CIPHER_GET_CTX_PARAMS, OSSL_FUNC_CIPHER_SET_CTX_PARAMS
    ctypedef struct OSSL_CORE_HANDLE:
        pass
    ctypedef struct OSSL_DISPATCH:
        int function_id
        void (*function)() noexcept nogil
    ctypedef struct OSSL_ALGORITHM:
        const char *algorithm_names
        const char *property_definition
        const OSSL_DISPATCH *implementation

cdef extern from "openssl/provider.h" nogil:
    ctypedef struct OSSL_PROVIDER:
        pass
    OSSL_PROVIDER *OSSL_PROVIDER_load(OSSL_LIB_CTX *, const char *)
    int OSSL_PROVIDER_add_builtin(
        OSSL_LIB_CTX *, const char *,
        int (*)(const OSSL_CORE_HANDLE *, const OSSL_DISPATCH *, const OSSL_DISPATCH **, void **) noexcept nogil)

cdef extern from "openssl/params.h" nogil:
    ctypedef struct OSSL_PARAM:
        void *data
        size_t data_size
    OSSL_PARAM *OSSL_PARAM_locate(OSSL_PARAM *, const char *)
    const OSSL_PARAM *OSSL_PARAM_locate_const(const OSSL_PARAM *, const char *)
    int OSSL_PARAM_get_size_t(const OSSL_PARAM *, size_t *)
    int OSSL_PARAM_set_size_t(OSSL_PARAM *, size_t)
    int OSSL_PARAM_set_int(OSSL_PARAM *, int)
    int OSSL_PARAM_set_uint(OSSL_PARAM *, unsigned int)
    int OSSL_PARAM_set_octet_string(OSSL_PARAM *, const void *, size_t)

cdef extern from "openssl/core_names.h" nogil:
    const char *OSSL_CIPHER_PARAM_AEAD_TAG
    const char *OSSL_CIPHER_PARAM_AEAD_IVLEN
    const char *OSSL_CIPHER_PARAM_AEAD_TAGLEN
    const char *OSSL_CIPHER_PARAM_KEYLEN
    const char *OSSL_CIPHER_PARAM_IVLEN
    const char *OSSL_CIPHER_PARAM_MODE
    const char *OSSL_CIPHER_PARAM_AEAD
    const char *OSSL_CIPHER_PARAM_CUSTOM_IV
    const char *OSSL_CIPHER_PARAM_BLOCK_SIZE

cdef extern from "openssl/evp.h" nogil:
    unsigned int EVP_CIPH_GCM_MODE
    int EVP_default_properties_is_fips_enabled(OSSL_LIB_CTX *)

cdef extern from "gcm.h" nogil:
    size_t GCM_ALIGNMENT
    cdef struct gcm_key_data:
        pass
    cdef struct gcm_context_data:
        pass
    cdef struct gcm:
        size_t key
        size_t key_data
        size_t state
        void (*expand)(const void *, gcm_key_data *) noexcept nogil
        void (*begin)(
            const gcm_key_data *, gcm_context_data *, const uint8_t *, const uint8_t *, uint64_t) noexcept nogil
        void (*update[2])(
            const gcm_key_data *, gcm_context_data *, uint8_t *, const uint8_t *, uint64_t) noexcept nogil
        void (*finish[2])(const gcm_key_data *, gcm_context_data *, uint8_t *, uint64_t) noexcept nogil
    bint gcm_find(gcm *)

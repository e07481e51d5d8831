/* A peer that speaks TLS as it should, so that a script can change what it says on its way: OpenSSL on two buffers.
 * Included before the seams. */

static SSL *honest_new(SSL_CTX *context, int server)
{
    SSL *made = SSL_new(context);
    BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
    if (made == NULL || in == NULL || out == NULL) {
        fprintf(stderr, "fuzz: no memory for TLS\n");
        abort();
    }
    BIO_set_mem_eof_return(in, -1);
    SSL_set_bio(made, in, out);
    if (server)
        SSL_set_accept_state(made);
    else
        SSL_set_connect_state(made);
    return made;
}

/* What the pump sent; what follows from it waits for honest_says. */
static void honest_hears(SSL *ssl, const unsigned char *data, int length)
{
    unsigned char dropped[4096];
    ERR_clear_error();
    if (length > 0)
        BIO_write(SSL_get_rbio(ssl), data, length);
    if (SSL_do_handshake(ssl) == 1)
        while (SSL_read(ssl, dropped, sizeof(dropped)) > 0)
            ;
    ERR_clear_error();
}

static int honest_says(SSL *ssl, unsigned char *into, int limit)
{
    int count = BIO_read(SSL_get_wbio(ssl), into, limit);
    return count > 0 ? count : 0;
}

static void honest_speaks(SSL *ssl, const unsigned char *data, int length)
{
    ERR_clear_error();
    if (length > 0 && SSL_is_init_finished(ssl))
        SSL_write(ssl, data, length);
    ERR_clear_error();
}

/* RFC 8446 4.6.3; each asks for the other side's new keys too. */
static void honest_changes_keys(SSL *ssl)
{
    ERR_clear_error();
    if (SSL_is_init_finished(ssl) && SSL_key_update(ssl, SSL_KEY_UPDATE_REQUESTED) == 1)
        SSL_do_handshake(ssl);
    ERR_clear_error();
}

static void honest_closes(SSL *ssl)
{
    ERR_clear_error();
    SSL_shutdown(ssl);
    ERR_clear_error();
}

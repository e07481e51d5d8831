/* Where the pump meets the kernel and OpenSSL, a script can stand in. Included before everything else of the module that
 * is fuzzed; the pump's own code is the product's, to the letter.
 *
 * - socket(), connect(): pairs of local sockets, whose far ends the script holds once they are connected; getsockname():
 *   their names
 * - setns(): a pod's namespace is a device; sockets are made in there, and nothing else is done
 * - close(): a descriptor is closed once, and every one of them is
 * - bind(): succeeds; bpf(2): whatever was dialled, it was the same, and every announcement is taken
 * - recv(), SSL_read(): what was not received may not be looked at
 * - clock_gettime(): a microsecond is over with each look
 * - plain: TLS is left out, and the bytes of a tunnel are HTTP/2 at once */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <regex.h>
#include <sanitizer/asan_interface.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "honest.h"

enum { SEAM_DESCRIPTORS = 4096, SEAM_FARS = 60 };

static int seam_plain;               /* no TLS */
static int seam_end;                 /* SSL_get_error at the end of what was received; 0: more may come */
static int seam_code;                /* errno of the next connect(); 0: it succeeds */
static int seam_small;               /* the kernel takes a few KiB only */
static X509 *seam_certificate;       /* the peer's, where TLS is left out */
static unsigned char seam_open[SEAM_DESCRIPTORS];
static long seam_opened;             /* and not closed */
static long seam_looks;              /* at the clock */
static int seam_fars[SEAM_FARS];     /* descriptors of far ends, in the order they were made */
static int seam_far_count;
static struct sockaddr_storage seam_local; /* of the next connection that is accepted */
static int seam_nears[SEAM_FARS];    /* and of the pump's, which may be closed by now */
static unsigned char seam_resets[SEAM_DESCRIPTORS]; /* local sockets know no RST: it is read where FIN would be */
static int seam_away;                /* the namespace that the thread is in: 0 is its own */
static int seam_ahead[SEAM_DESCRIPTORS]; /* far ends of sockets that are not connected yet; 0: none */
static int seam_ahead_count;

static void seam_fail(const char *what)
{
    fprintf(stderr, "fuzz: %s\n", what);
    abort();
}

/* A descriptor that the pump shall close. */
static int seam_mark(int fd)
{
    if (fd < 0 || fd >= SEAM_DESCRIPTORS)
        seam_fail("no descriptor");
    seam_open[fd] = 1;
    seam_resets[fd] = 0;
    seam_opened++;
    return fd;
}

static int seam_close(int fd)
{
    if (fd < 0)
        return -1;
    if (fd < SEAM_DESCRIPTORS && seam_open[fd]) {
        seam_open[fd] = 0;
        seam_opened--;
    } else {
        seam_fail("a descriptor was closed that is not the pump's");
    }
    if (seam_ahead[fd]) {
        close(seam_ahead[fd]);
        seam_ahead[fd] = 0;
        seam_ahead_count--;
    }
    return close(fd);
}

static int seam_setns(int fd, int kind)
{
    struct stat found;
    (void)kind;
    if (fstat(fd, &found) != 0)
        return -1;
    seam_away = S_ISCHR(found.st_mode) ? (int)found.st_rdev : 0;
    return 0;
}

/* The pump's end of a connection that the script does not know yet. */
static int seam_socket(int family, int type, int protocol)
{
    int both[2], size = 1;
    (void)family, (void)type, (void)protocol;
    if (seam_far_count + seam_ahead_count == SEAM_FARS
        || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, both) != 0) {
        errno = EMFILE;
        return -1;
    }
    if (seam_small)
        setsockopt(both[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    seam_mark(both[0]);
    seam_ahead[both[0]] = both[1];
    seam_ahead_count++;
    return both[0];
}

/* From now on its far end is the last of seam_fars. */
static void seam_join(int fd)
{
    if (fd < 0 || fd >= SEAM_DESCRIPTORS || !seam_ahead[fd])
        return;
    seam_nears[seam_far_count] = fd;
    seam_fars[seam_far_count++] = seam_ahead[fd];
    seam_ahead[fd] = 0;
    seam_ahead_count--;
}

static int seam_pair(void)
{
    int fd = seam_socket(0, 0, 0);
    seam_join(fd);
    return fd;
}

static int seam_made(int family, int type, int protocol)
{
    if (!seam_away)
        seam_fail("a socket was made outside of the pod's namespace");
    return seam_socket(family, type, protocol);
}

static int seam_connect(int fd, const struct sockaddr *to, socklen_t size)
{
    int code = seam_code;
    (void)to, (void)size;
    if (seam_away)
        seam_fail("the thread did not come home from a pod's namespace");
    seam_join(fd);
    seam_code = 0;
    errno = code;
    return code ? -1 : 0;
}

static int seam_bind(int fd, const struct sockaddr *to, socklen_t size)
{
    (void)fd, (void)to, (void)size;
    return 0;
}

/* Commands on elements of maps: see MapCall of standing.pxi. */
static long seam_syscall(long number, long command, void *call, long size)
{
    enum { LOOKUP = 1, DIALLED = 48 };
    void *value;
    (void)number, (void)size;
    if (command == LOOKUP) {
        memcpy(&value, (char *)call + 16, sizeof(value));
        memset(value, 7, DIALLED);
    }
    return 0;
}

static int seam_named(const struct sockaddr_storage *name, struct sockaddr *into, socklen_t *size)
{
    *size = name->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
    memcpy(into, name, *size);
    return 0;
}

static void seam_received(void *into, ssize_t count, size_t limit)
{
    int code = errno;
    count = count > 0 ? count : 0;
    __asan_poison_memory_region((char *)into + count, limit - (size_t)count);
    errno = code;
}

static ssize_t seam_recv(int fd, void *into, size_t limit, int flags)
{
    ssize_t count;
    __asan_unpoison_memory_region(into, limit);
    count = recv(fd, into, limit, flags);
    if (count == 0 && limit > 0 && seam_resets[fd]) {
        seam_received(into, 0, limit);
        errno = ECONNRESET;
        return -1;
    }
    seam_received(into, count, limit);
    return count;
}

static void seam_reset(int far)
{
    if (seam_open[seam_nears[far]])
        seam_resets[seam_nears[far]] = 1;
}

static int seam_getsockopt(int fd, int level, int name, void *value, socklen_t *size)
{
    int failed = getsockopt(fd, level, name, value, size);
    if (failed == 0 && level == SOL_SOCKET && name == SO_ERROR && seam_resets[fd])
        *(int *)value = ECONNRESET;
    return failed;
}

static int seam_SSL_read(SSL *ssl, void *into, int limit)
{
    int count;
    __asan_unpoison_memory_region(into, limit);
    count = seam_plain ? BIO_read(SSL_get_rbio(ssl), into, limit) : SSL_read(ssl, into, limit);
    seam_received(into, count, (size_t)limit);
    return count;
}

static int seam_SSL_write(SSL *ssl, const void *data, int length)
{
    return seam_plain ? BIO_write(SSL_get_wbio(ssl), data, length) : SSL_write(ssl, data, length);
}

static int seam_SSL_do_handshake(SSL *ssl)
{
    return seam_plain ? 1 : SSL_do_handshake(ssl);
}

static int seam_SSL_shutdown(SSL *ssl)
{
    return seam_plain ? 1 : SSL_shutdown(ssl);
}

static int seam_SSL_get_error(const SSL *ssl, int result)
{
    if (!seam_plain)
        return SSL_get_error(ssl, result);
    return seam_end ? seam_end : SSL_ERROR_WANT_READ;
}

static void seam_SSL_get0_alpn_selected(const SSL *ssl, const unsigned char **chosen, unsigned int *length)
{
    if (!seam_plain) {
        SSL_get0_alpn_selected(ssl, chosen, length);
        return;
    }
    *chosen = (const unsigned char *)"h2";
    *length = 2;
}

static X509 *seam_SSL_get1_peer_certificate(const SSL *ssl)
{
    if (!seam_plain)
        return SSL_get1_peer_certificate(ssl);
    if (seam_certificate != NULL)
        X509_up_ref(seam_certificate);
    return seam_certificate;
}

/* A certificate that has nothing but this extension subjectAltName, whatever that may be; NULL without memory. */
static X509 *seam_certified(const unsigned char *names, long length)
{
    X509 *made = X509_new();
    ASN1_OCTET_STRING *value = ASN1_OCTET_STRING_new();
    X509_EXTENSION *extension = NULL;
    if (made != NULL && value != NULL && ASN1_OCTET_STRING_set(value, names, (int)length) == 1)
        extension = X509_EXTENSION_create_by_NID(NULL, NID_subject_alt_name, 1, value);
    if (extension != NULL)
        X509_add_ext(made, extension, -1);
    X509_EXTENSION_free(extension);
    ASN1_OCTET_STRING_free(value);
    return made;
}

/* The grammar of identities once more, by means nobody here wrote; length of the trust domain, 0: it is none. */
static size_t seam_identity(const char *text)
{
    static regex_t form;
    static int made;
    regmatch_t parts[4];
    int i;
    if (!made && regcomp(&form, "^spiffe://([a-z0-9._-]+)/ns/([A-Za-z0-9._-]+)/sa/([A-Za-z0-9._-]+)$", REG_EXTENDED) != 0)
        seam_fail("no regular expression");
    made = 1;
    if (regexec(&form, text, 4, parts, 0) != 0 || parts[1].rm_eo - parts[1].rm_so > 255)
        return 0;
    for (i = 2; i < 4; i++)
        if (parts[i].rm_eo - parts[i].rm_so > 253)
            return 0;
    return (size_t)(parts[1].rm_eo - parts[1].rm_so);
}

static int seam_clock_gettime(clockid_t clock, struct timespec *now)
{
    (void)clock;
    seam_looks++;
    now->tv_sec = seam_looks / 1000000;
    now->tv_nsec = seam_looks % 1000000 * 1000;
    return 0;
}

#define clock_gettime(clock, now) seam_clock_gettime(clock, now)
#define close(fd) seam_close(fd)
#define socket(family, type, protocol) seam_made(family, type, protocol)
#define setns(fd, kind) seam_setns(fd, kind)
#define connect(fd, to, size) seam_connect(fd, to, size)
#define bind(fd, to, size) seam_bind(fd, to, size)
#define syscall(number, command, call, size) seam_syscall(number, command, call, size)
#define getsockname(fd, into, size) seam_named(&seam_local, into, size)
#define recv(fd, into, limit, flags) seam_recv(fd, into, limit, flags)
#define getsockopt(fd, level, name, value, size) seam_getsockopt(fd, level, name, value, size)
#define SSL_read(ssl, into, limit) seam_SSL_read(ssl, into, limit)
#define SSL_write(ssl, data, length) seam_SSL_write(ssl, data, length)
#define SSL_do_handshake(ssl) seam_SSL_do_handshake(ssl)
#define SSL_shutdown(ssl) seam_SSL_shutdown(ssl)
#define SSL_get_error(ssl, result) seam_SSL_get_error(ssl, result)
#define SSL_get0_alpn_selected(ssl, chosen, length) seam_SSL_get0_alpn_selected(ssl, chosen, length)
#define SSL_get1_peer_certificate(ssl) seam_SSL_get1_peer_certificate(ssl)

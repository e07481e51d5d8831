# What libFuzzer calls. The first byte of an input says how the script is played.

cdef enum Target:
    TARGET_HANDSHAKE                # bytes before TLS is up, and an honest peer's that were changed on their way
    TARGET_SERVER                   # HTTP/2 of a peer that was let in, and what applications and decisions do meanwhile
    TARGET_CLIENT                   # HTTP/2 of a peer that we have dialled
    TARGET_CERTIFICATE              # identities in certificates

cdef enum:
    AUTOMATIC = 3            # bits: the Choice for every connection
    GREETED = 4              # the first peer has said hello
    SMALL = 8                # sockets take little at once
    SILENT = 16              # the first peer does not read
    STRANGE = 32             # handshake: of another trust domain
    DIALLED = 64             # handshake: we are the client
    NO_STREAMS = 32          # client: whoever is dialled permits none
    GOING = 64               # client: whoever is dialled goes away at once

cdef const char *PERMITS_NONE = b"\0\0\6\4\0\0\0\0\0" b"\0\3\0\0\0\0"
cdef const char *GOES = b"\0\0\0\4\0\0\0\0\0" b"\0\0\x08\7\0\0\0\0\0" b"\0\0\0\0\0\0\0\0"


cdef int spoilt = 0          # are the judges awake? 1 a descriptor is left, 2 a byte is read that never came


cdef void play(Target target, uint8_t how, Script *script) noexcept nogil:
    cdef Script first
    cdef uint8_t number = 8 if how & STRANGE else 0
    global seam_small
    world_begin()
    world.automatic = how & AUTOMATIC
    world.strange = (how & STRANGE) != 0
    if target == TARGET_CLIENT and how & (NO_STREAMS | GOING):
        world.haste, world.haste_length = (PERMITS_NONE, 15) if how & NO_STREAMS else (GOES, 26)
    seam_small = (how & SMALL) != 0
    script.budget = MOST_SAID
    first.at, first.end = &number, &number + 1
    if target == TARGET_CLIENT or target == TARGET_HANDSHAKE and how & DIALLED:
        world.automatic = CHOOSE_TUNNEL
        step_capture(&first)
        world_settle()  # it is decided, and a tunnel dialled
    else:
        step_dial(&first)
        world_settle()
    if how & SILENT:
        world.fars[world.far_count - 1].deaf = True
    if how & GREETED:
        hello(script, &world.fars[world.far_count - 1])
        world_settle()
    world.automatic = how & AUTOMATIC
    script_run(script)
    if spoilt == 1:
        seam_mark(dup_(<int>world.loops[0].home))
    elif spoilt == 2:
        world.shared.threads += world.loops[0].plain[PLAIN - 1]
    world_end()


cdef enum:                   # of the target certificate
    FORM = 3                 # bits: a certificate, the extension's value, lines of URIs, the same
    EXPECTED = 4             # as a client asks, which expects some identities

cdef const char *EXPECTING = b"spiffe://cluster.local/ns/a/sa/b\nspiffe://other.domain/ns/c/sa/d"


cdef X509 *certificate_made(uint8_t form, const uint8_t *data, size_t length) noexcept nogil:
    """NULL: it is none."""
    cdef X509 *made
    cdef Buffer names
    cdef const unsigned char *at = data
    if form == 0:
        return d2i_X509(NULL, &at, <long>length)
    if form == 1:
        return seam_certified(data, <long>length)
    memset(&names, 0, sizeof(names))
    names_written(&names, data, length)
    made = seam_certified(buffer_start(&names), <long>names.length)
    buffer_free(&names)
    return made


cdef void name_head(Buffer *into, uint8_t tag, size_t length) noexcept nogil:
    """Of DER, with two bytes for the length."""
    cdef uint8_t head[4]
    head[0], head[1], head[2], head[3] = tag, 0x82, <uint8_t>(length >> 8), <uint8_t>length
    buffer_append(into, head, 2 if length < 128 else 4 if length > 255 else 3)
    if length < 128:
        into.bytes[into.length - 1] = <uint8_t>length
    elif length <= 255:
        into.bytes[into.length - 2], into.bytes[into.length - 1] = 0x81, <uint8_t>length


cdef const uint8_t *line_end(const uint8_t *at, const uint8_t *end) noexcept nogil:
    cdef const uint8_t *found = <const uint8_t *>memchr(at, c"\n", end - at) if at < end else NULL
    return found if found != NULL else end


cdef void names_written(Buffer *into, const uint8_t *data, size_t length) noexcept nogil:
    """GeneralNames of URIs, one per line."""
    cdef const uint8_t *at = data
    cdef const uint8_t *end = data + length
    cdef const uint8_t *stop
    cdef Buffer inner
    memset(&inner, 0, sizeof(inner))
    while at < end:
        stop = line_end(at, end)
        name_head(&inner, 0x86, stop - at)
        buffer_append(&inner, at, stop - at)
        at = stop + 1
    name_head(into, 0x30, inner.length)
    buffer_append(into, buffer_start(&inner), inner.length)
    buffer_free(&inner)


cdef char *welcome_line(bint expected, const uint8_t *data, size_t length) noexcept nogil:
    """Whom tls_peer has to name, of URIs by lines; NULL: nobody. For the caller to free."""
    cdef const uint8_t *at = data
    cdef const uint8_t *end = data + length
    cdef const uint8_t *stop
    cdef char *first = NULL
    cdef char *line
    cdef size_t domain
    cdef bint welcome = False
    cdef int i
    for i in range(MAX_URIS):
        if at >= end or welcome and expected:
            break
        stop = line_end(at, end)
        line = copy_text(<const char *>at, stop - at)
        domain = seam_identity(line) if strlen(line) == <size_t>(stop - at) else 0
        at = stop + 1
        if domain and (not expected or is_expected(line)):
            welcome = welcome or expected or domain == 13 and memcmp(line + 9, b"cluster.local", 13) == 0
            if first == NULL:
                first = line
                continue
        free(line)
    if first != NULL and not welcome:
        free(first)
        first = NULL
    return first


cdef bint is_expected(const char *line) noexcept nogil:
    return (strcmp(line, b"spiffe://cluster.local/ns/a/sa/b") == 0
            or strcmp(line, b"spiffe://other.domain/ns/c/sa/d") == 0)


cdef void certificate_target(uint8_t how, const uint8_t *data, size_t length) noexcept nogil:
    global seam_certificate
    cdef uint8_t form = how & FORM
    cdef bint expected = (how & EXPECTED) != 0
    cdef char *peer = NULL
    cdef char *awaited
    cdef char why[1024]
    if length > 60_000:
        return
    seam_certificate = certificate_made(form, data, length)
    if tls_peer(world.nobody, b"cluster.local", EXPECTING if expected else NULL, &peer, why, sizeof(why)) == OK:
        expect(peer != NULL and seam_identity(peer) != 0, b"an identity that is none")
    else:
        expect(peer == NULL and strlen(why) < sizeof(why), b"an identity of somebody who is not welcome")
    if form >= 2:
        awaited = welcome_line(expected, data, length)
        expect((peer == NULL) == (awaited == NULL) and (peer == NULL or strcmp(peer, awaited) == 0),
               b"another identity than the regular expression finds")
        free(awaited)
    free(peer)
    X509_free(seam_certificate)
    seam_certificate = NULL
    ERR_clear_error()


cdef Target chosen


cdef void one(const uint8_t *data, size_t size) noexcept nogil:
    cdef Script script
    if size == 0:
        return
    if chosen == TARGET_CERTIFICATE:
        certificate_target(data[0], data + 1, size - 1)
        return
    script.at, script.end = data + 1, data + size
    play(chosen, data[0], &script)


def prepare(str target, dict engine, ours, theirs, strangers, int spoil):
    """Make ready for inputs of this target; the address of a C function that takes one (bytes, length)."""
    global chosen, seam_plain, spoilt
    spoilt = spoil
    chosen = <Target><int>("handshake", "server", "client", "certificate").index(target)
    world_make(engine, ours, theirs, strangers)
    seam_plain = chosen != TARGET_HANDSHAKE
    return <size_t>&one

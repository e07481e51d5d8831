# SPIFFE ids of Istio's five-part form, as mesh.identity reads them.

cdef enum:
    MAX_URIS = 16            # of a certificate that are looked at
    URI_TEXT = 800           # longer than any id: 9 + 255 + 4 + 253 + 4 + 253


cdef inline size_t _label(const unsigned char *at, size_t left, size_t most, bint lower) noexcept nogil:
    """Length of the run of characters that a part may have; 0: none, or too long."""
    cdef size_t length = 0
    cdef unsigned char c
    while length < left:
        c = at[length]
        if not (c"a" <= c <= c"z" or c"0" <= c <= c"9" or c == c"." or c == c"_" or c == c"-"
                or (c"A" <= c <= c"Z" and not lower)):
            break
        length += 1
    return length if length <= most else 0


cdef inline size_t spiffe_trust_domain(const unsigned char *uri, size_t length) noexcept nogil:
    """Length of the trust domain, which begins at uri[9]; 0: not spiffe://<trust domain>/ns/<ns>/sa/<account>."""
    cdef size_t at, part, domain
    if length < 9 or memcmp(uri, b"spiffe://", 9) != 0:
        return 0
    domain = _label(uri + 9, length - 9, 255, True)
    at = 9 + domain
    if domain == 0 or length - at < 4 or memcmp(uri + at, b"/ns/", 4) != 0:
        return 0
    at += 4
    part = _label(uri + at, length - at, 253, False)
    at += part
    if part == 0 or length - at < 4 or memcmp(uri + at, b"/sa/", 4) != 0:
        return 0
    at += 4
    part = _label(uri + at, length - at, 253, False)
    return domain if part != 0 and at + part == length else 0


cdef inline bint listed(const char *lines, const unsigned char *text, size_t length) noexcept nogil:
    """`text` is one of the lines."""
    cdef const char *end
    while lines[0] != 0:
        end = strchr(lines, c"\n")
        if end == NULL:
            return strlen(lines) == length and memcmp(lines, text, length) == 0
        if <size_t>(end - lines) == length and memcmp(lines, text, length) == 0:
            return True
        lines = end + 1
    return False

# Socket addresses, and how they are written.

cdef enum:
    ADDRESS_TEXT = 64


cdef union Address:
    sockaddr any
    sockaddr_in four
    sockaddr_in6 six


cdef inline socklen_t address_size(const Address *self) noexcept nogil:
    return sizeof(sockaddr_in6) if self.any.sa_family == AF_INET6 else sizeof(sockaddr_in)


cdef inline uint16_t address_port(const Address *self) noexcept nogil:
    return ntohs(self.six.sin6_port if self.any.sa_family == AF_INET6 else self.four.sin_port)


cdef inline void address_ip(const Address *self, char *into) noexcept nogil:
    """`into` has room for ADDRESS_TEXT."""
    into[0] = 0
    if self.any.sa_family == AF_INET6:
        inet_ntop(AF_INET6, &self.six.sin6_addr, into, ADDRESS_TEXT)
    else:
        inet_ntop(AF_INET, &self.four.sin_addr, into, ADDRESS_TEXT)


cdef inline void address_text(const Address *self, char *into) noexcept nogil:
    """ip:port, an IPv6 address in brackets; `into` has room for ADDRESS_TEXT."""
    cdef char ip[ADDRESS_TEXT]
    address_ip(self, ip)
    if self.any.sa_family == AF_INET6:
        snprintf(into, ADDRESS_TEXT, b"[%s]:%d", ip, <int>address_port(self))
    else:
        snprintf(into, ADDRESS_TEXT, b"%s:%d", ip, <int>address_port(self))


cdef inline int address_parse(Address *self, const char *ip, uint16_t port) noexcept nogil:
    """0, or -1: not an IP address."""
    memset(self, 0, sizeof(Address))
    if inet_pton(AF_INET, ip, &self.four.sin_addr) == 1:
        self.four.sin_family = AF_INET
        self.four.sin_port = htons(port)
        return 0
    if inet_pton(AF_INET6, ip, &self.six.sin6_addr) == 1:
        self.six.sin6_family = AF_INET6
        self.six.sin6_port = htons(port)
        return 0
    return -1


cdef inline bint address_same_ip(const Address *one, const Address *other) noexcept nogil:
    if one.any.sa_family != other.any.sa_family:
        return False
    if one.any.sa_family == AF_INET6:
        return memcmp(&one.six.sin6_addr, &other.six.sin6_addr, 16) == 0
    return one.four.sin_addr.s_addr == other.four.sin_addr.s_addr


cdef inline void batch_address(Batch *batch, const Address *address) noexcept nogil:
    cdef char ip[ADDRESS_TEXT]
    address_ip(address, ip)
    batch_text(batch, ip)
    batch_number(batch, address_port(address))

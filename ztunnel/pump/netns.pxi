# Sockets in a pod's network namespace.
#
# A socket stays in the namespace it was made in, so a thread enters only around socket(2). A pod in the agent's own
# namespace is not entered at all.


cdef int netns_home(uint64_t *inode) noexcept nogil:
    """A descriptor of the namespace that this thread is in; -1 with errno."""
    cdef int fd = open_(b"/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)
    inode[0] = netns_inode(fd) if fd >= 0 else 0
    return fd


cdef uint64_t netns_inode(int fd) noexcept nogil:
    cdef stat_t found
    return found.st_ino if fstat(fd, &found) == 0 else 0


cdef int netns_socket(int netns, int home, uint64_t home_inode, int family) noexcept nogil:
    """A non-blocking TCP socket in `netns`; -1 with errno."""
    cdef int fd
    return fd if netns_sockets(netns, home, home_inode, family, &fd, 1) else -1


cdef int netns_sockets(int netns, int home, uint64_t home_inode, int family, int *into, int wanted) noexcept nogil:
    """As many as wanted, or fewer, and no more than one where nothing has to be entered; how many. 0: none, with errno. A
    thread that cannot return to its own namespace ends the process: everything after that would happen in some pod's."""
    cdef int count = 0, code
    cdef bint away = netns_inode(netns) != home_inode
    if away and setns(netns, CLONE_NEWNET) != 0:
        return 0
    while count < (wanted if away else 1):
        into[count] = socket_(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        if into[count] < 0:
            break
        count += 1
    code = errno
    while away and setns(home, CLONE_NEWNET) != 0:
        if errno != EINTR:
            die(b"cannot leave a network namespace")
    set_errno(code)
    return count


cdef inline void set_errno(int code) noexcept nogil:
    errno_location()[0] = code

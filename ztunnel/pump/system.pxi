# What is used of the kernel and of libc: declarations only.

cdef extern from "sys/types.h" nogil:
    ctypedef Py_ssize_t ssize_t
    ctypedef unsigned int socklen_t

cdef extern from "sys/socket.h" nogil:
    ctypedef unsigned short sa_family_t
    cdef struct sockaddr:
        sa_family_t sa_family
    cdef struct linger:
        int l_onoff
        int l_linger
    int AF_INET, AF_INET6, SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC, SOL_SOCKET, SO_LINGER, SO_KEEPALIVE, SO_ERROR
    int SO_COOKIE, MSG_NOSIGNAL, SHUT_WR
    int socket_ "socket"(int, int, int)
    int bind_ "bind"(int, const sockaddr *, socklen_t)
    int connect_ "connect"(int, const sockaddr *, socklen_t)
    int accept4(int, sockaddr *, socklen_t *, int)
    int getsockname(int, sockaddr *, socklen_t *)
    int setsockopt(int, int, int, const void *, socklen_t)
    int getsockopt(int, int, int, void *, socklen_t *)
    int shutdown_ "shutdown"(int, int)
    ssize_t recv_ "recv"(int, void *, size_t, int)
    ssize_t send_ "send"(int, const void *, size_t, int)
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    cdef struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int, const msghdr *, int)

cdef extern from "sys/random.h" nogil:
    ssize_t getrandom(void *, size_t, unsigned int)

cdef extern from "netinet/in.h" nogil:
    cdef struct in_addr:
        uint32_t s_addr
    cdef struct in6_addr:
        uint8_t s6_addr[16]
    cdef struct sockaddr_in:
        sa_family_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    cdef struct sockaddr_in6:
        sa_family_t sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr
    int IPPROTO_TCP, IPPROTO_IP
    uint16_t htons(uint16_t)
    uint16_t ntohs(uint16_t)

cdef extern from "netinet/tcp.h" nogil:
    int TCP_NODELAY, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_NOTSENT_LOWAT

cdef extern from "linux/in.h" nogil:
    pass

cdef extern from "arpa/inet.h" nogil:
    int inet_pton(int, const char *, void *)
    const char *inet_ntop(int, const void *, char *, socklen_t)

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    uint32_t EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLLET
    int EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLL_CLOEXEC
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event *)
    int epoll_wait(int, epoll_event *, int, int)

cdef extern from "poll.h" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int POLLIN
    int poll(pollfd *, unsigned long, int)

cdef extern from "sys/eventfd.h" nogil:
    int EFD_NONBLOCK, EFD_CLOEXEC
    int eventfd(unsigned int, int)

cdef extern from "unistd.h" nogil:
    int close_ "close"(int)
    ssize_t read_ "read"(int, void *, size_t)
    ssize_t write_ "write"(int, const void *, size_t)
    long syscall_ "syscall"(long, ...)

cdef extern from "sys/syscall.h" nogil:
    long SYS_bpf

cdef extern from "sched.h" nogil:
    int CLONE_NEWNET
    int setns(int, int)
    int sched_yield()

cdef extern from "fcntl.h" nogil:
    int O_RDONLY, O_CLOEXEC
    int open_ "open"(const char *, int)

cdef extern from "sys/stat.h" nogil:
    cdef struct stat_t "stat":
        uint64_t st_dev
        uint64_t st_ino
    int fstat(int, stat_t *)

cdef extern from "time.h" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID
    int clock_gettime(int, timespec *)

cdef extern from "pthread.h" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_create(pthread_t *, void *, void *(*)(void *) noexcept nogil, void *)
    int pthread_join(pthread_t, void **)
    int pthread_setname_np(pthread_t, const char *)
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_cond_init(pthread_cond_t *, void *)
    int pthread_cond_destroy(pthread_cond_t *)
    int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *)
    int pthread_cond_clockwait(pthread_cond_t *, pthread_mutex_t *, int, const timespec *)
    int pthread_cond_broadcast(pthread_cond_t *)

cdef extern from "signal.h" nogil:
    ctypedef struct sigset_t:
        pass
    int SIG_SETMASK
    int sigfillset(sigset_t *)
    int pthread_sigmask(int, const sigset_t *, sigset_t *)

cdef extern from "stdio.h" nogil:
    int snprintf(char *, size_t, const char *, ...)
    int fprintf(void *, const char *, ...)
    void *stderr

cdef extern from "stdlib.h" nogil:
    void abort()

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t, size_t)

cdef extern from "malloc.h" nogil:
    int M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    int mallopt(int, int)

cdef extern from "string.h" nogil:
    const char *strerrordesc_np(int)
    char *strdup(const char *)

cdef extern from * nogil:  # builtins of the compiler
    long atomic_add "__atomic_add_fetch"(long *, long, int)
    long atomic_get "__atomic_load_n"(const long *, int)
    void atomic_set "__atomic_store_n"(long *, long, int)
    uint64_t atomic_get64 "__atomic_load_n"(uint64_t *, int)
    void atomic_set64 "__atomic_store_n"(uint64_t *, uint64_t, int)
    int RELAXED "__ATOMIC_RELAXED"
    int ACQ_REL "__ATOMIC_ACQ_REL"
    int *errno_location "__errno_location"()

cdef enum:
    IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h

#include <uapi/linux/bpf.h>
#include <uapi/linux/in.h>

/* Of libc and of kernel headers that a BPF program cannot include */
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOL_SOCKET 1
#define SO_BINDTODEVICE 25
#define MSG_PEEK 2
#define MSG_ERRQUEUE 0x2000
#define EEXIST 17

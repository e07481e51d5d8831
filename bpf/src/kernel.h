#include <uapi/linux/bpf.h>
#include <uapi/linux/in.h>

/* Of libc and of kernel headers that a BPF program cannot include */
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOL_SOCKET 1
#define SO_BINDTODEVICE 25
#define SO_RCVLOWAT 18
#define SO_TIMESTAMP 29
#define SO_TIMESTAMPNS 35
#define SO_TIMESTAMPING 37
#define SO_PEEK_OFF 42
#define SO_ZEROCOPY 60
#define SO_TIMESTAMP_NEW 63
#define SO_TIMESTAMPNS_NEW 64
#define SO_TIMESTAMPING_NEW 65
#define TCP_CONGESTION 13
#define TCP_REPAIR 19
#define TCP_ULP 31
#define TCP_INQ 36
#define MSG_OOB 1
#define MSG_PEEK 2
#define MSG_TRUNC 0x20
#define MSG_DONTWAIT 0x40
#define MSG_WAITALL 0x100
#define MSG_ERRQUEUE 0x2000
#define EEXIST 17

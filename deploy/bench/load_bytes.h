/* What is sent and how it is known to be right; sockets that end the program when they fail. */
#pragma once

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PERIOD = 65521, CHUNK = 256 * 1024, EVENTS = 256, CONNECT_BYTES = 16, LARGEST = 1 << 20, GRACE_S = 30 };
enum { WRONG_BYTES = 1, USAGE = 2, BROKEN = 3, TOO_SLOW = 4 };

static uint8_t pattern[PERIOD + LARGEST]; /* any message is one contiguous piece of it */

static struct {
  const char *command, *host;
  int port, connections, size, threads, count;
  double seconds, rate;
  bool server_first, blocking;
} want = {.host = "127.0.0.1", .connections = 1, .size = 100, .threads = 1, .seconds = 1, .port = -1};

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static _Noreturn void die(int status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  fprintf(stderr, "load %s: ", want.command ? want.command : "");
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  _exit(status);
}

static void too_slow(int signal) {
  static const char text[] = "load: not finished long after its time was up: some connection is stuck\n";
  (void)signal;
  if (write(2, text, sizeof text - 1) < 0) _exit(TOO_SLOW);
  _exit(TOO_SLOW);
}

static void fill_pattern(void) {
  uint32_t x = 2463534242u;
  for (int i = 0; i < PERIOD; i++) {
    x ^= x << 13, x ^= x >> 17, x ^= x << 5;
    pattern[i] = (uint8_t)(x >> 11);
  }
  pattern[0] = 'S'; /* a stream is the pattern from its start */
  for (int i = PERIOD; i < PERIOD + LARGEST; i++) pattern[i] = pattern[i - PERIOD];
}

static struct sockaddr_storage peer;
static socklen_t peer_length;

static void resolve(void) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV}, *found;
  char port[8];
  snprintf(port, sizeof port, "%d", want.port);
  int error = getaddrinfo(want.host, port, &hints, &found);
  if (error) die(USAGE, "--host %s: %s; give an IP address", want.host, gai_strerror(error));
  memcpy(&peer, found->ai_addr, found->ai_addrlen);
  peer_length = found->ai_addrlen;
  freeaddrinfo(found);
}

/* Sockets are non-blocking from their beginning, as a server's and its clients' are; `blocking` makes all of them wait. */
static int dial_begin(void) {
  int fd = socket(peer.ss_family, SOCK_STREAM | SOCK_CLOEXEC | (want.blocking ? 0 : SOCK_NONBLOCK), 0), one = 1;
  if (fd < 0) die(BROKEN, "socket: %m");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(fd, (struct sockaddr *)&peer, peer_length) && errno != EINPROGRESS)
    die(BROKEN, "connect to %s port %d: %m", want.host, want.port);
  return fd;
}

static void dial_end(int fd) {
  socklen_t length = sizeof errno;
  if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &errno, &length) || errno)
    die(BROKEN, "connect to %s port %d: %m", want.host, want.port);
}

static void wait_for(int fd, short event) {
  while (poll(&(struct pollfd){.fd = fd, .events = event}, 1, -1) < 0 && errno == EINTR) continue;
}

static int dial(void) {
  int fd = dial_begin();
  wait_for(fd, POLLOUT);
  dial_end(fd);
  return fd;
}

static void send_all(int fd, const uint8_t *data, size_t size) {
  while (size) {
    ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) wait_for(fd, POLLOUT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n <= 0) die(BROKEN, "send: %m");
    data += n, size -= (size_t)n;
  }
}

/* 0 at the connection's end. */
static size_t receive(int fd, uint8_t *data, size_t size) {
  for (;;) {
    ssize_t n = recv(fd, data, size, 0);
    if (n >= 0) return (size_t)n;
    if (errno == EAGAIN) wait_for(fd, POLLIN);
    else if (errno != EINTR) die(BROKEN, "recv: %m");
  }
}

static void receive_all(int fd, uint8_t *data, size_t size) {
  while (size) {
    size_t n = receive(fd, data, size);
    if (n == 0) die(BROKEN, "recv: the connection ended %zu bytes early", size);
    data += n, size -= n;
  }
}

static void receive_end(int fd) {
  uint8_t byte;
  if (receive(fd, &byte, 1)) die(WRONG_BYTES, "a byte too many");
}

/* Message `number` of connection `id`: different from its neighbours, so that crossed or stale replies show. */
static void compose(uint8_t *message, int size, char mode, uint64_t id, uint64_t number) {
  memcpy(message, pattern + (id * 7919 + number * 127) % PERIOD, (size_t)size);
  message[0] = (uint8_t)mode;
}

static void round_trip(int fd, int size, char mode, uint64_t id, uint64_t number) {
  uint8_t *sent = malloc((size_t)size), *got = malloc((size_t)size);
  compose(sent, size, mode, id, number);
  send_all(fd, sent, (size_t)size);
  receive_all(fd, got, (size_t)size);
  if (memcmp(sent, got, (size_t)size)) die(WRONG_BYTES, "connection %lu, message %lu came back changed", id, number);
  free(sent), free(got);
}

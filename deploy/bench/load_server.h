/* The server: one epoll loop per thread; what a socket will not take waits, and nothing is read from it meanwhile.
 * With sockets that block, a thread for each connection. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <sys/epoll.h>

#include "load_bytes.h"

struct served {
  int fd;
  char mode;         /* 0 until the first byte, then 'E', 'C', 'S' or 'N' */
  uint64_t count, bad;
  uint8_t *waiting;  /* bytes that the socket would not take; nothing is read meanwhile */
  size_t at, left;
};

static void forget(struct served *c) {
  close(c->fd);
  free(c->waiting);
  free(c);
}

static void await(int poll, struct served *c, uint32_t events) {
  epoll_ctl(poll, EPOLL_CTL_MOD, c->fd, &(struct epoll_event){.events = events, .data.ptr = c});
}

/* Returns false when the connection is gone. */
static bool give_back(int poll, struct served *c, const uint8_t *data, size_t size) {
  while (size) {
    ssize_t n = send(c->fd, data, size, MSG_NOSIGNAL);
    if (n > 0) {
      data += n, size -= (size_t)n;
    } else if (errno == EAGAIN) {
      uint8_t *kept = malloc(size);
      memcpy(kept, data, size);
      free(c->waiting);
      c->waiting = kept, c->at = 0, c->left = size;
      await(poll, c, EPOLLOUT);
      return true;
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

static bool flush_waiting(int poll, struct served *c) {
  while (c->left) {
    ssize_t n = send(c->fd, c->waiting + c->at, c->left, MSG_NOSIGNAL);
    if (n <= 0) return errno == EAGAIN || errno == EINTR;
    c->at += (size_t)n, c->left -= (size_t)n;
  }
  free(c->waiting);
  c->waiting = NULL;
  await(poll, c, EPOLLIN);
  return true;
}

static void check_stream(struct served *c, const uint8_t *data, size_t size) {
  if (!c->bad && memcmp(data, pattern + c->count % PERIOD, size)) {
    size_t i = 0;
    while (data[i] == pattern[(c->count + i) % PERIOD]) i++;
    c->bad = c->count + i + 1;
  }
  c->count += size;
}

static bool serve(int poll, struct served *c, uint8_t *buffer) {
  if (c->mode == 'N') return false; /* reset by its peer */
  if (c->left) return flush_waiting(poll, c);
  ssize_t n = recv(c->fd, buffer, CHUNK, 0);
  if (n < 0) return errno == EAGAIN || errno == EINTR;
  if (n == 0) {
    if (c->mode == 'S') {
      uint64_t summary[2] = {c->count, c->bad};
      give_back(poll, c, (uint8_t *)summary, sizeof summary);
    }
    return false;
  }
  if (!c->mode) c->mode = (char)buffer[0];
  if (c->mode == 'N') return await(poll, c, 0), true; /* never again; its end is still heard of */
  if (c->mode == 'S') return check_stream(c, buffer, (size_t)n), true;
  c->count += (uint64_t)n;
  return give_back(poll, c, buffer, (size_t)n) && !(c->mode == 'C' && c->count >= CONNECT_BYTES);
}

static void *serve_blocking(void *served) {
  uint8_t *buffer = malloc(CHUNK);
  struct served *c = served;
  while (serve(-1, c, buffer))
    if (c->mode == 'N') wait_for(c->fd, 0);
  forget(c);
  free(buffer);
  return NULL;
}

static void begin(int poll, struct served *c) {
  pthread_t thread;
  if (!want.blocking) {
    epoll_ctl(poll, EPOLL_CTL_ADD, c->fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = c});
  } else if (pthread_create(&thread, NULL, serve_blocking, c) || pthread_detach(thread)) {
    die(BROKEN, "a thread for a connection: %m");
  }
}

static void welcome(int poll, int listener) {
  int fd, one = 1;
  while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | (want.blocking ? 0 : SOCK_NONBLOCK))) >= 0) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct served *c = calloc(1, sizeof *c);
    c->fd = fd;
    begin(poll, c);
  }
}

static int listener;

static void *server_thread(void *unused) {
  struct epoll_event events[EVENTS];
  uint8_t *buffer = malloc(CHUNK);
  int poll = epoll_create1(EPOLL_CLOEXEC);
  epoll_ctl(poll, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN | EPOLLEXCLUSIVE});
  for (;;) {
    int n = epoll_wait(poll, events, EVENTS, -1);
    for (int i = 0; i < n; i++) {
      struct served *c = events[i].data.ptr;
      if (!c) welcome(poll, listener);
      else if (!serve(poll, c, buffer)) forget(c);
    }
  }
  return unused;
}

static void run_server(void) {
  int one = 1, off = 0;
  listener = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)want.port)};
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  socklen_t size = sizeof any;
  if (bind(listener, (struct sockaddr *)&any, size) || listen(listener, 4096)) die(BROKEN, "port %d: %m", want.port);
  getsockname(listener, (struct sockaddr *)&any, &size);
  printf("{\"listening\": %d}\n", ntohs(any.sin6_port));
  fflush(stdout);
  pthread_t thread;
  for (int i = 1; i < want.threads; i++) pthread_create(&thread, NULL, server_thread, NULL);
  server_thread(NULL);
}

/* Connections that somebody else is to end: half of them idle, half with a message under way all the time. */
#pragma once

#include <sys/epoll.h>

#include "load_bytes.h"

struct watched {
  int fd;
  bool busy;
};

struct endings { /* of one half */
  int errors, count;
  uint64_t last_ns; /* CLOCK_MONOTONIC, when the last of them had ended */
};

/* Returns true when the connection is over, 0 in `error` if it ended without one. */
static bool is_over(struct watched *w, uint8_t *buffer, int *error) {
  ssize_t n = recv(w->fd, buffer, (size_t)want.size, 0);
  if (n > 0 && w->busy) n = send(w->fd, buffer, (size_t)n, MSG_NOSIGNAL);
  *error = n < 0 ? errno : 0;
  return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

static void print_endings(const char *name, const struct endings *half, const char *then) {
  printf("\"%s\": {\"connections\": %d, \"errors\": %d, \"last_ns\": %lu}%s", name, half->count, half->errors, half->last_ns, then);
}

static void run_watch(void) {
  struct epoll_event events[EVENTS];
  struct watched *all = calloc((size_t)want.connections, sizeof *all);
  uint8_t *buffer = malloc((size_t)want.size);
  struct endings halves[2] = {{0}, {0}};
  int poll = epoll_create1(EPOLL_CLOEXEC), open = want.connections;
  for (int i = 0; i < want.connections; i++) {
    all[i] = (struct watched){.fd = dial(), .busy = i % 2};
    round_trip(all[i].fd, want.size, 'E', (uint64_t)i, 0);
    epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = &all[i]});
  }
  for (int i = 1; i < want.connections; i += 2) {
    compose(buffer, want.size, 'E', (uint64_t)i, 1);
    send_all(all[i].fd, buffer, (size_t)want.size);
  }
  printf("{\"ready\": %d}\n", want.connections);
  fflush(stdout);
  while (open) {
    int n = epoll_wait(poll, events, EVENTS, -1), error;
    for (int i = 0; i < n; i++) {
      struct watched *w = events[i].data.ptr;
      if (!is_over(w, buffer, &error)) continue;
      struct endings *half = &halves[w->busy];
      half->count++, half->errors += error != 0, half->last_ns = now_ns();
      close(w->fd);
      open--;
    }
  }
  printf("{");
  print_endings("idle", &halves[0], ", ");
  print_endings("busy", &halves[1], "}\n");
  fflush(stdout);
}

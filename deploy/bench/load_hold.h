/* Connections that are there to be looked at: idle ones, and ones whose reader never reads. */
#pragma once

#include <sys/epoll.h>

#include "load_bytes.h"

enum { QUIET_MS = 500 }; /* a writer that its socket refuses for so long is full */

static void wait_for_stdin(void) {
  char byte;
  fflush(stdout);
  while (read(0, &byte, 1) > 0) continue;
}

static void run_hold(void) {
  int *fds = calloc((size_t)want.connections, sizeof *fds);
  for (int i = 0; i < want.connections; i++) round_trip(fds[i] = dial(), want.size, 'E', (uint64_t)i, 0);
  printf("{\"ready\": %d}\n", want.connections);
  wait_for_stdin();
  for (int i = 0; i < want.connections; i++) round_trip(fds[i], want.size, 'E', (uint64_t)i, 1), close(fds[i]);
  printf("{\"figure\": \"hold\", \"connections\": %d}\n", want.connections);
}

/* Writes messages of one size to servers that do not read, until no socket takes any more. */
static void run_stuff(void) {
  struct epoll_event events[EVENTS];
  struct linger reset = {.l_onoff = 1};
  uint8_t *message = calloc(1, (size_t)want.size);
  uint64_t messages = 0, bytes = 0;
  int *fds = calloc((size_t)want.connections, sizeof *fds), n;
  int poll = epoll_create1(EPOLL_CLOEXEC);
  memset(message, 'N', (size_t)want.size);
  for (int i = 0; i < want.connections; i++) {
    fds[i] = dial();
    setsockopt(fds[i], SOL_SOCKET, SO_LINGER, &reset, sizeof reset); /* its end frees what is queued */
    epoll_ctl(poll, EPOLL_CTL_ADD, fds[i], &(struct epoll_event){.events = EPOLLOUT, .data.fd = fds[i]});
  }
  while ((n = epoll_wait(poll, events, EVENTS, QUIET_MS))) {
    for (int i = 0; i < n; i++) {
      for (int turn = 0; turn < EVENTS; turn++) {
        ssize_t sent = send(events[i].data.fd, message, (size_t)want.size, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR)) break;
        if (sent < 0) die(BROKEN, "send: %m");
        messages++, bytes += (uint64_t)sent;
      }
    }
  }
  printf("{\"ready\": %d, \"size\": %d, \"messages\": %lu, \"bytes\": %lu}\n", want.connections, want.size, messages, bytes);
  wait_for_stdin();
}

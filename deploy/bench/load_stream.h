/* Streams: every connection sends as fast as its socket takes it; the receiver compares, and counts. One epoll loop. */
#pragma once

#include <sys/epoll.h>

#include "load_bytes.h"

struct sender {
  int fd;
  bool done;          /* all is sent; the receiver's summary is awaited */
  uint64_t count;
  size_t got;         /* bytes of the summary */
  uint64_t summary[2];
};

static void check_summary(uint64_t sent, const uint64_t summary[2]) {
  if (summary[1]) die(WRONG_BYTES, "the byte at offset %lu arrived changed", summary[1] - 1);
  if (summary[0] != sent) die(WRONG_BYTES, "%lu bytes sent, %lu arrived", sent, summary[0]);
}

static void print_streams(double seconds, uint64_t bytes) {
  printf("{\"figure\": \"stream\", \"connections\": %d, \"seconds\": %.4f, \"bytes\": %lu, \"gbit_per_s\": %.4f}\n",
         want.connections, seconds, bytes, (double)bytes * 8 / seconds / 1e9);
}

static void send_more(int poll, struct sender *c, bool is_over) {
  if (is_over) {
    shutdown(c->fd, SHUT_WR);
    c->done = true;
    epoll_ctl(poll, EPOLL_CTL_MOD, c->fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = c});
    return;
  }
  ssize_t n = send(c->fd, pattern + c->count % PERIOD, CHUNK, MSG_NOSIGNAL);
  if (n > 0) c->count += (uint64_t)n;
  else if (errno != EAGAIN && errno != EINTR) die(BROKEN, "send: %m");
}

/* Returns true when the summary is in, and right. */
static bool read_summary(struct sender *c) {
  ssize_t n = recv(c->fd, (uint8_t *)c->summary + c->got, sizeof c->summary - c->got, 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  if (n < 0) die(BROKEN, "recv: %m");
  if (n == 0) die(BROKEN, "recv: the connection ended %zu bytes early", sizeof c->summary - c->got);
  if ((c->got += (size_t)n) < sizeof c->summary) return false;
  check_summary(c->count, c->summary);
  close(c->fd);
  return true;
}

static void run_stream(void) {
  struct epoll_event events[EVENTS];
  struct sender *senders = calloc((size_t)want.connections, sizeof *senders);
  int poll = epoll_create1(EPOLL_CLOEXEC), open = want.connections;
  uint64_t start = now_ns(), until = start + (uint64_t)(want.seconds * 1e9), total = 0;
  for (int i = 0; i < want.connections; i++) {
    senders[i].fd = dial();
    epoll_ctl(poll, EPOLL_CTL_ADD, senders[i].fd, &(struct epoll_event){.events = EPOLLOUT, .data.ptr = &senders[i]});
  }
  while (open) {
    int n = epoll_wait(poll, events, EVENTS, -1);
    bool is_over = now_ns() >= until;
    for (int i = 0; i < n; i++) {
      struct sender *c = events[i].data.ptr;
      if (!c->done) send_more(poll, c, is_over);
      else if (read_summary(c)) total += c->count, open--;
    }
  }
  print_streams((double)(now_ns() - start) / 1e9, total);
}

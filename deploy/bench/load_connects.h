/* New connections: a number of callers, each connects, exchanges 16 bytes, closes, and begins anew. One epoll loop. */
#pragma once

#include <sys/epoll.h>

#include "load_bytes.h"
#include "load_latency.h"

enum stage { IDLE, CONNECTING, WAITING, ENDING };

struct visitor {
  int fd;
  enum stage stage;
  uint64_t id, number, start;
  size_t got;
  uint8_t sent[CONNECT_BYTES], reply[CONNECT_BYTES];
};

static void print_connects(double seconds, uint64_t connected, const struct histogram *latency) {
  printf("{\"figure\": \"connects\", \"connections\": %d, \"seconds\": %.4f, \"connects\": %lu, \"rate\": %.1f, ",
         want.connections, seconds, connected, (double)connected / seconds);
  print_latency(latency);
  puts("}");
}

/* When connection `turn` is due; UINT64_MAX: never. */
static uint64_t due_at(uint64_t turn, uint64_t start, uint64_t until) {
  if (want.count && turn >= (uint64_t)want.count) return UINT64_MAX;
  uint64_t due = want.rate > 0 ? start + (uint64_t)((double)turn / want.rate * 1e9) : start;
  return due < until ? due : UINT64_MAX;
}

static void set_out(int poll, struct visitor *v) {
  v->start = now_ns();
  v->fd = dial_begin();
  v->stage = CONNECTING;
  v->got = 0;
  /* Edge by edge: one event when it is connected, one or more as bytes arrive; no call to change what is awaited. */
  epoll_ctl(poll, EPOLL_CTL_ADD, v->fd, &(struct epoll_event){.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = v});
}

static void introduce(struct visitor *v) {
  dial_end(v->fd);
  compose(v->sent, CONNECT_BYTES, want.server_first ? 'C' : 'E', v->id, v->number++);
  send_all(v->fd, v->sent, CONNECT_BYTES);
  v->stage = WAITING;
}

/* Reads until there is no more for now; true when the connection has done its part. */
static bool hear(struct visitor *v) {
  for (;;) {
    uint8_t beyond, *to = v->stage == WAITING ? v->reply + v->got : &beyond;
    ssize_t n = recv(v->fd, to, v->stage == WAITING ? CONNECT_BYTES - v->got : 1, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return false;
    if (n < 0) die(BROKEN, "recv: %m");
    if (v->stage == ENDING && n > 0) die(WRONG_BYTES, "a byte too many");
    if (v->stage == ENDING) return true;
    if (n == 0) die(BROKEN, "recv: the connection ended %zu bytes early", CONNECT_BYTES - v->got);
    if ((v->got += (size_t)n) < CONNECT_BYTES) continue;
    if (memcmp(v->sent, v->reply, CONNECT_BYTES))
      die(WRONG_BYTES, "connection %lu, message %lu came back changed", v->id, v->number - 1);
    if (!want.server_first) return true;
    v->stage = ENDING;
  }
}

static void run_connects(void) {
  struct epoll_event events[EVENTS];
  struct visitor *visitors = calloc((size_t)want.connections, sizeof *visitors);
  struct histogram *latency = calloc(1, sizeof *latency);
  int poll = epoll_create1(EPOLL_CLOEXEC), busy = 0;
  uint64_t start = now_ns(), until = start + (uint64_t)(want.seconds * 1e9), turn = 0, connected = 0;
  for (int i = 0; i < want.connections; i++) visitors[i].id = (uint64_t)i;
  for (;;) {
    uint64_t now = now_ns(), due = now < until ? due_at(turn, start, until) : UINT64_MAX;
    for (int i = 0; i < want.connections && due <= now; i++) {
      if (visitors[i].stage != IDLE) continue;
      set_out(poll, &visitors[i]);
      busy++, due = due_at(++turn, start, until);
    }
    if (!busy && due == UINT64_MAX) break;
    uint64_t rest = due > now ? due - now : 0;
    struct timespec pause = {.tv_sec = (time_t)(rest / 1000000000u), .tv_nsec = (long)(rest % 1000000000u)};
    bool waits = busy < want.connections && due != UINT64_MAX;
    int n = epoll_pwait2(poll, events, EVENTS, waits ? &pause : NULL, NULL);
    for (int i = 0; i < n; i++) {
      struct visitor *v = events[i].data.ptr;
      if (v->stage == CONNECTING) introduce(v);
      if (!(events[i].events & ~(uint32_t)EPOLLOUT) || !hear(v)) continue;
      record(latency, now_ns() - v->start);
      close(v->fd);
      v->stage = IDLE, busy--, connected++;
    }
  }
  print_connects((double)(now_ns() - start) / 1e9, connected, latency);
}

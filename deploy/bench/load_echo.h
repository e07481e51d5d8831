/* The echo's client: one message under way on each connection, one epoll loop per thread. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <sys/epoll.h>

#include "load_bytes.h"
#include "load_latency.h"

struct caller {
  int fd;
  uint64_t id, number, sent_at;
  int out, in; /* bytes of the current message sent and received */
  bool waits_out;
  uint8_t *message;
};

struct crew { /* one thread and its connections */
  pthread_t thread;
  int first, count;
  uint64_t total, measured;
  struct histogram latency;
};

static uint64_t measure_from, measure_until;
static pthread_barrier_t connected_all; /* nobody asks before everybody is connected */

static void push(int poll, struct caller *c) {
  while (c->out < want.size) {
    ssize_t n = send(c->fd, c->message + c->out, (size_t)(want.size - c->out), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EAGAIN) die(BROKEN, "send on connection %lu: %m", c->id);
    if (n < 0) break;
    c->out += (int)n;
  }
  bool waits = c->out < want.size;
  if (waits != c->waits_out) {
    c->waits_out = waits;
    epoll_ctl(poll, EPOLL_CTL_MOD, c->fd,
              &(struct epoll_event){.events = EPOLLIN | (waits ? EPOLLOUT : 0), .data.ptr = c});
  }
}

static void ask(int poll, struct caller *c) {
  compose(c->message, want.size, 'E', c->id, c->number++);
  c->out = c->in = 0;
  c->sent_at = now_ns();
  push(poll, c);
}

/* Returns true when the whole reply is in. */
static bool listen_to(struct caller *c, uint8_t *buffer) {
  ssize_t n = recv(c->fd, buffer, (size_t)want.size + 1, 0); /* one more than is due: what is too much shows at once */
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  if (n < 0) die(BROKEN, "recv on connection %lu: %m", c->id);
  if (n == 0) die(BROKEN, "connection %lu ended in message %lu", c->id, c->number);
  if (c->in + n > c->out || memcmp(buffer, c->message + c->in, (size_t)n))
    die(WRONG_BYTES, "connection %lu, message %lu: wrong bytes after %d", c->id, c->number, c->in);
  c->in += (int)n;
  return c->in == want.size;
}

static void *echo_thread(void *argument) {
  struct crew *crew = argument;
  struct epoll_event events[EVENTS];
  int poll = epoll_create1(EPOLL_CLOEXEC), open = crew->count;
  uint8_t *buffer = malloc((size_t)want.size + 1);
  struct caller *callers = calloc((size_t)crew->count, sizeof *callers);
  for (int i = 0; i < crew->count; i++) {
    struct caller *c = &callers[i];
    *c = (struct caller){.fd = dial(), .id = (uint64_t)(crew->first + i), .message = malloc((size_t)want.size)};
    round_trip(c->fd, want.size, 'E', c->id, c->number++); /* the whole path is up before anything is measured */
    crew->total++;
    epoll_ctl(poll, EPOLL_CTL_ADD, c->fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = c});
  }
  if (pthread_barrier_wait(&connected_all) == PTHREAD_BARRIER_SERIAL_THREAD) {
    measure_from = now_ns() + (uint64_t)(want.seconds * 1e8); /* the first tenth warms up */
    measure_until = measure_from + (uint64_t)(want.seconds * 1e9);
  }
  pthread_barrier_wait(&connected_all);
  for (int i = 0; i < crew->count; i++) ask(poll, &callers[i]);
  while (open) {
    int n = epoll_wait(poll, events, EVENTS, -1);
    for (int i = 0; i < n; i++) {
      struct caller *c = events[i].data.ptr;
      if (c->waits_out) push(poll, c);
      if (!(events[i].events & ~(uint32_t)EPOLLOUT) || !listen_to(c, buffer)) continue;
      uint64_t at = now_ns();
      crew->total++;
      if (at >= measure_from && at < measure_until) crew->measured++, record(&crew->latency, at - c->sent_at);
      if (at < measure_until) ask(poll, c);
      else close(c->fd), open--;
    }
  }
  return NULL;
}

static void print_echo(uint64_t measured, uint64_t total, const struct histogram *latency) {
  if (!measured) die(TOO_SLOW, "not one message came back in %g seconds", want.seconds);
  printf("{\"figure\": \"echo\", \"connections\": %d, \"size\": %d, \"seconds\": %g, \"messages\": %lu, "
         "\"total_messages\": %lu, \"rate\": %.1f, ",
         want.connections, want.size, want.seconds, measured, total, (double)measured / want.seconds);
  print_latency(latency);
  puts("}");
}

static void run_echo(void) {
  int threads = want.threads < want.connections ? want.threads : want.connections;
  struct crew *crews = calloc((size_t)threads, sizeof *crews);
  struct histogram *all = calloc(1, sizeof *all);
  uint64_t total = 0, measured = 0;
  pthread_barrier_init(&connected_all, NULL, (unsigned)threads);
  for (int i = 0, first = 0; i < threads; i++) {
    int count = (want.connections - first) / (threads - i);
    crews[i].first = first, crews[i].count = count, first += count;
    pthread_create(&crews[i].thread, NULL, echo_thread, &crews[i]);
  }
  for (int i = 0; i < threads; i++) {
    pthread_join(crews[i].thread, NULL);
    merge(all, &crews[i].latency);
    total += crews[i].total, measured += crews[i].measured;
  }
  print_echo(measured, total, all);
}

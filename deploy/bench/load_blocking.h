/* The same loads with sockets that block, and a thread for each connection: what simple programs do. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "load_bytes.h"
#include "load_connects.h"
#include "load_echo.h"
#include "load_latency.h"
#include "load_stream.h"

static struct histogram blocking_latency;
static pthread_mutex_t blocking_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t blocking_start;
static atomic_ulong blocking_total, blocking_measured, blocking_turn;
static uint64_t blocking_since;

/* Runs one thread per connection, all from one moment on, and returns the seconds that all of them took. */
static double run_threads(void *(*body)(void *)) {
  pthread_t *threads = calloc((size_t)want.connections, sizeof *threads);
  pthread_barrier_init(&blocking_start, NULL, (unsigned)want.connections);
  blocking_since = now_ns();
  for (intptr_t i = 0; i < want.connections; i++) pthread_create(&threads[i], NULL, body, (void *)i);
  for (int i = 0; i < want.connections; i++) pthread_join(threads[i], NULL);
  return (double)(now_ns() - blocking_since) / 1e9;
}

static void add_latency(const struct histogram *own) {
  pthread_mutex_lock(&blocking_lock);
  merge(&blocking_latency, own);
  pthread_mutex_unlock(&blocking_lock);
}

static void *blocking_echo_thread(void *id) {
  struct histogram *own = calloc(1, sizeof *own);
  struct caller c = {.fd = dial(), .id = (uint64_t)id, .message = malloc((size_t)want.size)};
  uint8_t *buffer = malloc((size_t)want.size + 1);
  uint64_t total = 0, measured = 0;
  round_trip(c.fd, want.size, 'E', c.id, c.number++);
  pthread_barrier_wait(&blocking_start);
  uint64_t from = now_ns() + (uint64_t)(want.seconds * 1e8), until = from + (uint64_t)(want.seconds * 1e9), at;
  do {
    ask(-1, &c); /* a socket that blocks takes all: nothing is waited for by epoll */
    while (!listen_to(&c, buffer)) continue;
    at = now_ns(), total++;
    if (at >= from && at < until) measured++, record(own, at - c.sent_at);
  } while (at < until);
  close(c.fd);
  add_latency(own);
  blocking_total += total + 1;
  blocking_measured += measured;
  return NULL;
}

static void *blocking_stream_thread(void *id) {
  uint64_t until = blocking_since + (uint64_t)(want.seconds * 1e9), count = 0, summary[2];
  int fd = dial();
  for (; now_ns() < until; count += CHUNK) send_all(fd, pattern + count % PERIOD, CHUNK);
  shutdown(fd, SHUT_WR);
  receive_all(fd, (uint8_t *)summary, sizeof summary);
  check_summary(count, summary);
  close(fd);
  blocking_total += count;
  return id;
}

static void sleep_until(uint64_t when) {
  struct timespec t = {.tv_sec = (time_t)(when / 1000000000u), .tv_nsec = (long)(when % 1000000000u)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) continue;
}

static void *blocking_connects_thread(void *id) {
  struct histogram *own = calloc(1, sizeof *own);
  uint64_t until = blocking_since + (uint64_t)(want.seconds * 1e9), number = 0, due;
  while ((due = due_at(blocking_turn++, blocking_since, until)) != UINT64_MAX && now_ns() < until) {
    if (due > now_ns()) sleep_until(due);
    uint64_t start = now_ns();
    int fd = dial();
    round_trip(fd, CONNECT_BYTES, want.server_first ? 'C' : 'E', (uint64_t)id, number++);
    if (want.server_first) receive_end(fd);
    record(own, now_ns() - start);
    close(fd);
    blocking_total++;
  }
  add_latency(own);
  return NULL;
}

static void run_blocking_echo(void) {
  run_threads(blocking_echo_thread);
  print_echo(blocking_measured, blocking_total, &blocking_latency);
}

static void run_blocking_stream(void) {
  double seconds = run_threads(blocking_stream_thread);
  print_streams(seconds, blocking_total);
}

static void run_blocking_connects(void) {
  double seconds = run_threads(blocking_connects_thread);
  print_connects(seconds, blocking_total, &blocking_latency);
}

/* Load for the benchmark: one small program, both ends, every byte verified.
 *
 *   load server   --port P [--threads T]                         echo and sink, until killed
 *   load echo     --host H --port P --connections N --size B --seconds S [--threads T]
 *   load stream   --host H --port P --connections N --seconds S
 *   load connects --host H --port P --connections N --seconds S  N at a time: connect, 16 bytes there and back, close
 *                 [--count C] [--rate R] [--first server]        no more than C, no more than R per second; who closes first
 *   load hold     --host H --port P --connections N              prints {"ready": N}, holds them until stdin ends
 *
 * A connection says with its first byte what it wants. 'E': all it sends comes back. 'C': so it does, and after 16 bytes
 * the server closes. 'S': all it sends is compared with the pattern; at its FIN the server answers with 16 bytes, the count
 * and the offset of the first wrong byte plus one. The pattern's period is a prime, so a chunk that is lost, doubled or
 * moved shows, whatever its size.
 *
 * Prints one JSON object. Exit status: 0 all bytes right; 1 wrong bytes; 2 usage; 3 a connection failed; 4 too slow to end.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "load_bytes.h"
#include "load_echo.h"
#include "load_latency.h"
#include "load_server.h"

/* ---- stream, connects, hold ------------------------------------------------------------------------------------------- */

static atomic_ulong streamed;

static void *stream_thread(void *unused) {
  int fd = dial();
  uint64_t until = now_ns() + (uint64_t)(want.seconds * 1e9), count = 0, summary[2];
  while (now_ns() < until) {
    send_all(fd, pattern + count % PERIOD, CHUNK);
    count += CHUNK;
  }
  shutdown(fd, SHUT_WR);
  receive_all(fd, (uint8_t *)summary, sizeof summary);
  if (summary[1]) die(WRONG_BYTES, "the byte at offset %lu arrived changed", summary[1] - 1);
  if (summary[0] != count) die(WRONG_BYTES, "%lu bytes sent, %lu arrived", count, summary[0]);
  close(fd);
  streamed += count;
  return unused;
}

static atomic_ulong begun, connected;
static uint64_t connects_start;
static struct histogram connect_time;
static pthread_mutex_t connect_lock = PTHREAD_MUTEX_INITIALIZER;

static void sleep_until(uint64_t when) {
  struct timespec t = {.tv_sec = (time_t)(when / 1000000000u), .tv_nsec = (long)(when % 1000000000u)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) continue;
}

/* Waits until the next connection is due; false if there is none. */
static bool next_connect(uint64_t until) {
  uint64_t turn = begun++;
  if (want.count && turn >= (uint64_t)want.count) return false;
  uint64_t due = want.rate > 0 ? connects_start + (uint64_t)((double)turn / want.rate * 1e9) : 0;
  if (due >= until) return false;
  if (due > now_ns()) sleep_until(due);
  return now_ns() < until;
}

static void *connects_thread(void *argument) {
  uint64_t until = connects_start + (uint64_t)(want.seconds * 1e9), id = (uint64_t)argument, number = 0;
  struct histogram *own = calloc(1, sizeof *own);
  while (next_connect(until)) {
    uint64_t start = now_ns();
    int fd = dial();
    round_trip(fd, CONNECT_BYTES, want.server_first ? 'C' : 'E', id, number++);
    if (want.server_first) receive_end(fd);
    record(own, now_ns() - start);
    close(fd);
    connected++;
  }
  pthread_mutex_lock(&connect_lock);
  merge(&connect_time, own);
  pthread_mutex_unlock(&connect_lock);
  return NULL;
}

/* Runs one thread per connection and returns the seconds that all of them took. */
static double run_threads(void *(*body)(void *)) {
  pthread_t *threads = calloc((size_t)want.connections, sizeof *threads);
  uint64_t start = now_ns();
  for (intptr_t i = 0; i < want.connections; i++) pthread_create(&threads[i], NULL, body, (void *)i);
  for (int i = 0; i < want.connections; i++) pthread_join(threads[i], NULL);
  return (double)(now_ns() - start) / 1e9;
}

static void run_stream(void) {
  double seconds = run_threads(stream_thread);
  printf("{\"figure\": \"stream\", \"connections\": %d, \"seconds\": %.4f, \"bytes\": %lu, \"gbit_per_s\": %.4f}\n",
         want.connections, seconds, streamed, (double)streamed * 8 / seconds / 1e9);
}

static void run_connects(void) {
  connects_start = now_ns();
  double seconds = run_threads(connects_thread);
  printf("{\"figure\": \"connects\", \"connections\": %d, \"seconds\": %.4f, \"connects\": %lu, \"rate\": %.1f, ",
         want.connections, seconds, connected, (double)connected / seconds);
  print_latency(&connect_time);
  puts("}");
}

static void run_hold(void) {
  int *fds = calloc((size_t)want.connections, sizeof *fds);
  for (int i = 0; i < want.connections; i++) round_trip(fds[i] = dial(), want.size, 'E', (uint64_t)i, 0);
  printf("{\"ready\": %d}\n", want.connections);
  fflush(stdout);
  char byte;
  while (read(0, &byte, 1) > 0) continue;
  for (int i = 0; i < want.connections; i++) round_trip(fds[i], want.size, 'E', (uint64_t)i, 1), close(fds[i]);
  printf("{\"figure\": \"hold\", \"connections\": %d}\n", want.connections);
}

/* ---- command line ------------------------------------------------------------------------------------------------------ */

static double number(const char *option, const char *text, double low, double high) {
  char *end;
  double value = strtod(text, &end);
  if (*end || !(value >= low && value <= high)) die(USAGE, "%s %s: give a number from %g to %g", option, text, low, high);
  return value;
}

static void parse(int count, char **words) {
  if (count < 2) die(USAGE, "say what to do: server, echo, stream, connects or hold");
  want.command = words[1];
  for (int i = 2; i < count; i += 2) {
    const char *option = words[i], *value = words[i + 1];
    if (!value) die(USAGE, "%s needs a value", option);
    if (!strcmp(option, "--host")) want.host = value;
    else if (!strcmp(option, "--port")) want.port = (int)number(option, value, 1, 65535);
    else if (!strcmp(option, "--connections")) want.connections = (int)number(option, value, 1, 20000);
    else if (!strcmp(option, "--size")) want.size = (int)number(option, value, 1, LARGEST - 1);
    else if (!strcmp(option, "--threads")) want.threads = (int)number(option, value, 1, 64);
    else if (!strcmp(option, "--count")) want.count = (int)number(option, value, 1, 1e9);
    else if (!strcmp(option, "--rate")) want.rate = number(option, value, 0.1, 1e6);
    else if (!strcmp(option, "--first") && (!strcmp(value, "client") || !strcmp(value, "server"))) want.server_first = *value == 's';
    else if (!strcmp(option, "--seconds")) want.seconds = number(option, value, 0.01, 3600);
    else die(USAGE, "unknown option %s", option);
  }
  if (!want.port) die(USAGE, "--port is missing");
}

int main(int count, char **words) {
  parse(count, words);
  fill_pattern();
  if (!strcmp(want.command, "server")) return run_server(), 0;
  resolve();
  signal(SIGALRM, too_slow);
  if (strcmp(want.command, "hold")) alarm((unsigned)(want.seconds * 1.2) + GRACE_S);
  if (!strcmp(want.command, "echo")) run_echo();
  else if (!strcmp(want.command, "stream")) run_stream();
  else if (!strcmp(want.command, "connects")) run_connects();
  else if (!strcmp(want.command, "hold")) run_hold();
  else die(USAGE, "unknown command %s", want.command);
  return 0;
}

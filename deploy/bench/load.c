/* Load for the benchmark: one small program, both ends, every byte verified.
 *
 *   load server   --port P [--threads T]                         echo and sink, until killed
 *   load echo     --host H --port P --connections N --size B --seconds S [--threads T]
 *   load stream   --host H --port P --connections N --seconds S
 *   load connects --host H --port P --connections N --seconds S  N at a time: connect, 16 bytes there and back, close
 *   load hold     --host H --port P --connections N              prints {"ready": N}, holds them until stdin ends
 *
 * A connection says with its first byte what it wants. 'E': all it sends comes back. 'S': all it sends is compared with
 * the pattern; at its FIN the server answers with 16 bytes, the count and the offset of the first wrong byte plus one.
 * The pattern's period is a prime, so a chunk that is lost, doubled or moved shows, whatever its size.
 *
 * Prints one JSON object. Exit status: 0 all bytes right; 1 wrong bytes; 2 usage; 3 a connection failed; 4 too slow to end.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PERIOD = 65521, CHUNK = 256 * 1024, EVENTS = 256, CONNECT_BYTES = 16, LARGEST = 1 << 20, GRACE_S = 30 };
enum { WRONG_BYTES = 1, USAGE = 2, BROKEN = 3, TOO_SLOW = 4 };

static uint8_t pattern[PERIOD + LARGEST]; /* any message is one contiguous piece of it */

static struct {
  const char *command, *host;
  int port, connections, size, threads;
  double seconds;
} want = {.host = "127.0.0.1", .connections = 1, .size = 100, .threads = 1, .seconds = 1};

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

/* ---- latencies: log-linear buckets, 128 to the power of two, so at most 0.8 % off ------------------------------- */

enum { SUB = 7, BUCKETS = (64 - SUB) << SUB };

struct histogram {
  uint64_t count, sum, max, bucket[BUCKETS];
};

static int bucket_of(uint64_t ns) {
  if (ns < (1u << SUB)) return (int)ns;
  int shift = 63 - __builtin_clzll(ns) - SUB;
  return ((shift + 1) << SUB) + (int)((ns >> shift) & ((1u << SUB) - 1));
}

static double middle_of(int bucket) {
  if (bucket < (1 << SUB)) return bucket;
  int shift = (bucket >> SUB) - 1;
  uint64_t low = ((uint64_t)(bucket & ((1 << SUB) - 1)) + (1u << SUB)) << shift;
  return (double)low + (double)((uint64_t)1 << shift) / 2;
}

static void record(struct histogram *h, uint64_t ns) {
  h->count++, h->sum += ns, h->bucket[bucket_of(ns)]++;
  if (ns > h->max) h->max = ns;
}

static void merge(struct histogram *into, const struct histogram *from) {
  into->count += from->count, into->sum += from->sum;
  if (from->max > into->max) into->max = from->max;
  for (int i = 0; i < BUCKETS; i++) into->bucket[i] += from->bucket[i];
}

static double quantile_us(const struct histogram *h, double q) {
  uint64_t rank = (uint64_t)(q * (double)h->count), seen = 0;
  for (int i = 0; i < BUCKETS; i++)
    if ((seen += h->bucket[i]) > rank) return middle_of(i) / 1000;
  return (double)h->max / 1000;
}

static void print_latency(const struct histogram *h) {
  printf("\"latency_us\": {\"p50\": %.2f, \"p90\": %.2f, \"p99\": %.2f, \"p999\": %.2f, \"max\": %.2f, \"mean\": %.2f}",
         quantile_us(h, 0.50), quantile_us(h, 0.90), quantile_us(h, 0.99), quantile_us(h, 0.999), (double)h->max / 1000,
         h->count ? (double)h->sum / (double)h->count / 1000 : 0.0);
}

/* ---- sockets ------------------------------------------------------------------------------------------------------ */

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

static int dial(void) {
  int fd = socket(peer.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
  if (fd < 0) die(BROKEN, "socket: %m");
  if (connect(fd, (struct sockaddr *)&peer, peer_length)) die(BROKEN, "connect to %s port %d: %m", want.host, want.port);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return fd;
}

static void send_all(int fd, const uint8_t *data, size_t size) {
  while (size) {
    ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) die(BROKEN, "send: %m");
    data += n, size -= (size_t)n;
  }
}

static void receive_all(int fd, uint8_t *data, size_t size) {
  while (size) {
    ssize_t n = recv(fd, data, size, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) die(BROKEN, "recv: %m");
    if (n == 0) die(BROKEN, "recv: the connection ended %zu bytes early", size);
    data += n, size -= (size_t)n;
  }
}

/* Message `number` of connection `id`: different from its neighbours, so that crossed or stale replies show. */
static void compose(uint8_t *message, int size, uint64_t id, uint64_t number) {
  memcpy(message, pattern + (id * 7919 + number * 127) % PERIOD, (size_t)size);
  message[0] = 'E';
}

static void round_trip(int fd, int size, uint64_t id, uint64_t number) {
  uint8_t *sent = malloc((size_t)size), *got = malloc((size_t)size);
  compose(sent, size, id, number);
  send_all(fd, sent, (size_t)size);
  receive_all(fd, got, (size_t)size);
  if (memcmp(sent, got, (size_t)size)) die(WRONG_BYTES, "connection %lu, message %lu came back changed", id, number);
  free(sent), free(got);
}

/* ---- server --------------------------------------------------------------------------------------------------------- */

struct served {
  int fd;
  char mode;         /* 0 until the first byte, then 'E' or 'S' */
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
  if (c->mode == 'S') return check_stream(c, buffer, (size_t)n), true;
  return give_back(poll, c, buffer, (size_t)n);
}

static void welcome(int poll, int listener) {
  int fd, one = 1;
  while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct served *c = calloc(1, sizeof *c);
    c->fd = fd;
    epoll_ctl(poll, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = c});
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
  if (bind(listener, (struct sockaddr *)&any, sizeof any) || listen(listener, 4096)) die(BROKEN, "port %d: %m", want.port);
  printf("{\"listening\": %d}\n", want.port);
  fflush(stdout);
  pthread_t thread;
  for (int i = 1; i < want.threads; i++) pthread_create(&thread, NULL, server_thread, NULL);
  server_thread(NULL);
}

/* ---- echo ----------------------------------------------------------------------------------------------------------- */

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
  compose(c->message, want.size, c->id, c->number++);
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
    round_trip(c->fd, want.size, c->id, c->number++); /* the whole path is up before anything is measured */
    crew->total++;
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
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
  if (!measured) die(TOO_SLOW, "not one message came back in %g seconds", want.seconds);
  printf("{\"figure\": \"echo\", \"connections\": %d, \"size\": %d, \"seconds\": %g, \"messages\": %lu, "
         "\"total_messages\": %lu, \"rate\": %.1f, ",
         want.connections, want.size, want.seconds, measured, total, (double)measured / want.seconds);
  print_latency(all);
  puts("}");
}

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

static atomic_ulong connected;
static struct histogram connect_time;
static pthread_mutex_t connect_lock = PTHREAD_MUTEX_INITIALIZER;

static void *connects_thread(void *argument) {
  uint64_t until = now_ns() + (uint64_t)(want.seconds * 1e9), id = (uint64_t)argument, number = 0;
  struct histogram *own = calloc(1, sizeof *own);
  for (uint64_t start; (start = now_ns()) < until;) {
    int fd = dial();
    round_trip(fd, CONNECT_BYTES, id, number++);
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
  double seconds = run_threads(connects_thread);
  printf("{\"figure\": \"connects\", \"connections\": %d, \"seconds\": %.4f, \"connects\": %lu, \"rate\": %.1f, ",
         want.connections, seconds, connected, (double)connected / seconds);
  print_latency(&connect_time);
  puts("}");
}

static void run_hold(void) {
  int *fds = calloc((size_t)want.connections, sizeof *fds);
  for (int i = 0; i < want.connections; i++) round_trip(fds[i] = dial(), want.size, (uint64_t)i, 0);
  printf("{\"ready\": %d}\n", want.connections);
  fflush(stdout);
  char byte;
  while (read(0, &byte, 1) > 0) continue;
  for (int i = 0; i < want.connections; i++) round_trip(fds[i], want.size, (uint64_t)i, 1), close(fds[i]);
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

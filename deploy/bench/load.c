/* Load for the benchmark: one small program, both ends, every byte verified.
 *
 *   load server   --port P [--threads T]                         echo and sink, until killed; 0: any port, which it prints
 *   load echo     --host H --port P --connections N --size B --seconds S [--threads T]
 *   load stream   --host H --port P --connections N --seconds S
 *   load connects --host H --port P --connections N --seconds S  N at a time: connect, 16 bytes there and back, close
 *                 [--count C] [--rate R] [--first server]        no more than C, no more than R per second; who closes first
 *   load hold     --host H --port P --connections N              prints {"ready": N}, holds them until stdin ends
 *   load stuff    --host H --port P --connections N --size B     writes to who never reads until nothing more is taken;
 *                                                                prints {"ready": N, "messages", "bytes"}, holds it so
 *   load watch    --host H --port P --connections N [--size B]   prints {"ready": N}; every second one is busy; prints when
 *                                                                the last idle and the last busy one were ended, and how
 *
 * All of them take --cpu N: run there and nowhere else.
 *
 * Every socket is non-blocking and waited for by epoll, as busy servers and clients do it. `--blocking yes`, of the server
 * and of echo, stream and connects: sockets that block, and a thread for each connection.
 *
 * A connection says with its first byte what it wants. 'E': all it sends comes back. 'C': so it does, and after 16 bytes
 * the server closes. 'N': the server never reads again. 'S': all it sends is compared with the pattern; at its FIN the
 * server answers with 16 bytes, the count and the offset of the first wrong byte plus one. The pattern's period is a prime,
 * so a chunk that is lost, doubled or moved shows, whatever its size.
 *
 * Prints one JSON object. Exit status: 0 all bytes right; 1 wrong bytes; 2 usage; 3 a connection failed; 4 too slow to end.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>

#include "load_blocking.h"
#include "load_bytes.h"
#include "load_connects.h"
#include "load_echo.h"
#include "load_hold.h"
#include "load_server.h"
#include "load_stream.h"
#include "load_watch.h"

static double number(const char *option, const char *text, double low, double high) {
  char *end;
  double value = strtod(text, &end);
  if (*end || !(value >= low && value <= high)) die(USAGE, "%s %s: give a number from %g to %g", option, text, low, high);
  return value;
}

static void stay_on(int cpu) {
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET((unsigned)cpu, &only);
  if (sched_setaffinity(0, sizeof only, &only)) die(USAGE, "--cpu %d: %m", cpu);
}

static void parse(int count, char **words) {
  if (count < 2) die(USAGE, "say what to do: server, echo, stream, connects, hold, stuff or watch");
  want.command = words[1];
  for (int i = 2; i < count; i += 2) {
    const char *option = words[i], *value = words[i + 1];
    if (!value) die(USAGE, "%s needs a value", option);
    if (!strcmp(option, "--host")) want.host = value;
    else if (!strcmp(option, "--port")) want.port = (int)number(option, value, 0, 65535);
    else if (!strcmp(option, "--connections")) want.connections = (int)number(option, value, 1, 20000);
    else if (!strcmp(option, "--size")) want.size = (int)number(option, value, 1, LARGEST - 1);
    else if (!strcmp(option, "--threads")) want.threads = (int)number(option, value, 1, 64);
    else if (!strcmp(option, "--count")) want.count = (int)number(option, value, 1, 1e9);
    else if (!strcmp(option, "--rate")) want.rate = number(option, value, 0.1, 1e6);
    else if (!strcmp(option, "--first") && (!strcmp(value, "client") || !strcmp(value, "server"))) want.server_first = *value == 's';
    else if (!strcmp(option, "--blocking") && (!strcmp(value, "yes") || !strcmp(value, "no"))) want.blocking = *value == 'y';
    else if (!strcmp(option, "--cpu")) stay_on((int)number(option, value, 0, CPU_SETSIZE - 1));
    else if (!strcmp(option, "--seconds")) want.seconds = number(option, value, 0.01, 3600);
    else die(USAGE, "unknown option %s", option);
  }
  if (want.port < !!strcmp(want.command, "server")) die(USAGE, "--port is missing");
}

int main(int count, char **words) {
  parse(count, words);
  fill_pattern();
  if (!strcmp(want.command, "server")) return run_server(), 0;
  resolve();
  signal(SIGALRM, too_slow);
  bool ends = !strcmp(want.command, "echo") || !strcmp(want.command, "stream") || !strcmp(want.command, "connects");
  if (ends) alarm((unsigned)(want.seconds * 1.2) + GRACE_S);
  if (!strcmp(want.command, "echo")) want.blocking ? run_blocking_echo() : run_echo();
  else if (!strcmp(want.command, "stream")) want.blocking ? run_blocking_stream() : run_stream();
  else if (!strcmp(want.command, "connects")) want.blocking ? run_blocking_connects() : run_connects();
  else if (!strcmp(want.command, "hold")) run_hold();
  else if (!strcmp(want.command, "stuff")) run_stuff();
  else if (!strcmp(want.command, "watch")) run_watch();
  else die(USAGE, "unknown command %s", want.command);
  return 0;
}

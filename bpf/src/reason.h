/* Written by bpf/reasons.py from mesh/reason.py. */
enum reason {
  OK = 0,
  NO_DESTINATION = 1,
  AGENT_ABSENT = 2,
  RESERVED_PORT = 3,
  MAP_FULL = 4,
  UNROUTABLE_SOCKET = 5,
  UNAUTHENTICATED = 6,
  MISMATCH = 7,
  STALE_VERDICT = 8,
};

# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What peers can send, as targets of libFuzzer: the pump's own sources, compiled once more between the seams of seams.h.

    world     two loops without their threads: time, sockets and Python's part are the script's
    agent     Python's part: facts and orders
    script    an input is a list of steps; what a step is
    targets   handshake, server, client, certificate
    parts, pods  what no script can show

An input is judged by AddressSanitizer and UBSan, and by what must hold when everything is over: see world_end.
"""

include "../../ztunnel/pump/_pump.pyx"
include "world.pxi"
include "agent.pxi"
include "script.pxi"
include "targets.pxi"
include "parts.pxi"
include "pods.pxi"

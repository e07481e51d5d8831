"""The pump: bytes without Python. Native threads, each with an epoll and never the GIL, on OpenSSL and libnghttp2.

It knows nothing of policy: it reports facts and carries out one order per connection (`ztunnel.orders`). Python decides
once; facts and orders cross in batches over a queue and an eventfd; counters are read from shared memory.

    engine        PumpEngine: the seam in Python, plain values to and from the threads
    listeners     a pod's listeners in its netns
    limits        what a pod, a peer and a connection may use
    pod, census   what Python knows of a pod; a look inside the threads
    standing, book  which kinds of connections Python need not be asked about
    threads       how they are begun; with maps of the kernel side
    _pump         one compiled module of these parts, in the order of its includes:
      system, openssl  declarations
      memory      where structs come from and when they go; Lost; reasons
      timer       deadlines and postponed work
      turn        which pod has the thread
      batch       records that cross between threads
      address, identity, netns
      allowance   what an address may cost a pod before anything is decided
      inquiry     how many connections Python is asked about
      socket      TCP: options, dialling, reading, writing, last words
      aes         AES-GCM by AVX-512, where OpenSSL has none of it; gcm.h: whose it is
      tls         contexts, sessions on memory, whose certificate is welcome
      relay       two ends and the bytes between them
      stream      an end that is a stream of a tunnel
      tunnel      one connection of TLS and HTTP/2 in either role
      server      accepted tunnels: limits, verification, requests
      spread      which thread serves what of a pod
      pool        client tunnels shared by equal keys
      standing    decisions in advance: kinds of connections, and orders for them
      passage     a connection under a standing order
      listener    accept loops
      stock       sockets of a pod made ahead
      pod, connection
      early       what goes with a CONNECT
      vigil       whether a thread sleeps between two events
      loop        one thread: epoll, turns, what threads share
      facts, orders    what crosses
      face        the class Pump that Python sees

Ownership stands at each struct. A connection, a tunnel and its streams are of one thread at a time, so nothing of them
is shared; a pod may be served by several.
"""

from ztunnel.pump.engine import PumpEngine
from ztunnel.pump.limits import Limits
from ztunnel.pump.maps import Maps

__all__ = ["Limits", "Maps", "PumpEngine"]

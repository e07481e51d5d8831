"""The engine: sockets, TLS and HTTP/2 behind the seam of `ztunnel.orders`, in plain Python.

It knows nothing of policy: it reports facts and carries out one order per connection. A loop of callbacks, no task per
connection; made to be read and to be right, not to be fast.

    engine         the protocol: pods, ids, facts out, orders in
    connection     one connection from its fact to its Ended: waits for the order, dials, relays
    relay          two endpoints and the bytes between them: back-pressure, half-close, errors that stay errors
    endpoint       what a relay needs of either end, and Lost, the error
    tcp            an endpoint that is a socket; dialling, options
    stream         an endpoint that is a stream of a tunnel
    mux            the streams of a tunnel over HTTP/2, without I/O
    tunnel         one connection of TLS and HTTP/2 in either role
    channel        TLS over a socket
    pool           client side: tunnels shared by equal keys
    tunnel_server  server side: accepts, verifies, offers requests
    tls            contexts from DER, sessions without I/O, whose certificate is welcome
    ciphers        the process' TLS 1.3 suites: call `ensure_openssl_conf()` first thing
    listener       accept loops
    netns          sockets in a pod's network namespace
    poller         edge-triggered readiness
    pod, runtime, limits   what is kept per pod, what all parts share, the bounds

    engine = PythonEngine(steering, report)          # inside a running event loop
    listeners = engine.add_pod(uid, netns_fd, "cluster.local", ["10.0.0.7"])
    ...                                              # put the listeners into the kernel's slots
    engine.set_credentials(uid, credentials)
    engine.start_pod(uid)
    engine.order(RelayPlain(id=fact.id, destination=...))
"""

from ztunnel.engine.ciphers import ensure_openssl_conf
from ztunnel.engine.engine import PythonEngine
from ztunnel.engine.limits import Limits

__all__ = ["Limits", "PythonEngine", "ensure_openssl_conf"]

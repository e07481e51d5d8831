"""What the four applications share: an HTTP/1.1 server with keep-alive, and a client that keeps its connections.

Only the standard library, and little of it: with `python3 -S -E` an application answers
a tenth of a second after its start.
"""

import http.client
import http.server
import json
import os
import queue
import signal
import socket
import sys

# Forwarded from each request to the requests made because of it, so that traces hang together.
TRACE_HEADERS = (
    "x-request-id", "traceparent", "tracestate", "baggage", "b3",
    "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags", "end-user", "user-agent",
)  # fmt: skip


class Unavailable(Exception):
    """Another service did not answer, or not with 200."""


class Service:
    """Another service by name and port. Connections are kept and used again, but not for ever: a service address picks
    a pod per connection, and a page should show all the versions of a service now and then."""

    REQUESTS_PER_CONNECTION = 2

    def __init__(self, name, port=9080, timeout=3.0):
        self.name, self.port, self.timeout = name, port, timeout
        self._idle = queue.LifoQueue(maxsize=16)

    def get(self, path, headers=None):
        """GET a JSON document; tried again on a fresh connection if a kept one was closed by the other side."""
        try:
            return self._once(self._idle.get_nowait(), path, headers or {})
        except (queue.Empty, OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(self.name, self.port, timeout=self.timeout)
            try:
                return self._once(connection, path, headers or {})
            except (OSError, http.client.HTTPException) as error:
                raise Unavailable(f"{self.name}: {error}") from error

    def _once(self, connection, path, headers):
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        except BaseException:
            connection.close()
            raise
        connection.requests = getattr(connection, "requests", 0) + 1
        try:
            if connection.requests >= self.REQUESTS_PER_CONNECTION:
                connection.close()
            else:
                self._idle.put_nowait(connection)
        except queue.Full:
            connection.close()
        if answer.status != 200:
            raise Unavailable(f"{self.name}: HTTP status {answer.status}")
        return json.loads(body)


class _Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6  # and IPv4, mapped
    request_queue_size = 512
    daemon_threads = True

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not the inherited one: it looks the host's own name up, which costs a DNS question at start.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "", self.socket.getsockname()[1]


def serve(answer, port=None):
    """Serve until SIGTERM. `answer(path, headers)` gives a JSON value, or HTML as text; None is 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_GET(self):
            trace = {name: self.headers[name] for name in TRACE_HEADERS if name in self.headers}
            try:
                status, value = 200, answer(self.path, trace)
            except Unavailable as error:
                status, value = 503, {"error": str(error)}
            if value is None:
                status, value = 404, {"error": f"no {self.path} here"}
            html = isinstance(value, str)
            body = value.encode() if html else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8" if html else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *values):
            if self.path != "/health":
                sys.stdout.write(f"{self.client_address[0]} {format % values}\n")
                sys.stdout.flush()

    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    _Server(("::", port or int(os.environ.get("PORT", "9080"))), Handler).serve_forever()

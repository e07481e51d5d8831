"""The HTTP side: applications, and where they listen.

RUN/admin.sock    all of admin, root only (0600 in a 0700 directory)
127.0.0.1:15000   admin, to be read: any process in the node's network namespace reaches it
:15020            GET /metrics, /stats/prometheus
:15021            GET /healthz/ready: 200 "ready", 500 "not ready, pending: …"
                  GET /healthz/live: 200 "alive", 500 "stuck: …"; none from an event loop that is
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from bpf.facts import Description
from ztunnel.admin import dump, report
from ztunnel.admin.levels import Levels
from ztunnel.admin.listener import listen, unix_listener
from ztunnel.admin.view import AgentView
from ztunnel.metrics.exposition import negotiate
from ztunnel.metrics.scrape import Scrape

_REST_SECONDS = 1.0  # at most, after an answer

Make = Callable[[], report.Json | Awaitable[report.Json]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """0: any free one (told through `Endpoints.bound`)."""

    admin: int = 15000
    metrics: int = 15020
    readiness: int = 15021


@dataclass(slots=True, kw_only=True)
class Endpoints:
    """What is served, and the places where it is."""

    view: AgentView
    scrape: Scrape
    levels: Levels
    run: Path
    version: str
    stop: Callable[[], None]  # /quitquitquit: start a graceful stop
    ports: Ports = field(default_factory=Ports)
    given: dict[str, socket.socket] = field(default_factory=dict)  # listeners to go on with, by name
    bound: dict[str, int] = field(default_factory=dict)  # name -> port, once it listens
    listening: asyncio.Event = field(default_factory=asyncio.Event)  # all of them have, once
    _listeners: dict[str, socket.socket] = field(default_factory=dict)
    _stays: bool = False  # the unix socket is to outlive `serve`

    async def serve(self) -> None:
        """Serve until cancelled. OSError if the unix socket cannot be made; taken TCP ports are tried again."""
        admin = web.AppRunner(admin_app(self, writable=True), access_log=None, shutdown_timeout=1.0)
        await admin.setup()
        try:
            await web.SockSite(admin, self._unix("admin.sock")).start()
            async with asyncio.TaskGroup() as tasks:
                readable = admin_app(self, writable=False)
                tasks.create_task(self._tcp("admin", "127.0.0.1", self.ports.admin, readable))
                tasks.create_task(self._tcp("metrics", "", self.ports.metrics, metrics_app(self.scrape)))
                tasks.create_task(self._tcp("readiness", "", self.ports.readiness, readiness_app(self.view)))
        finally:
            await admin.cleanup()  # closes the socket too
            self._listeners.clear()
            if not self._stays:
                (self.run / "admin.sock").unlink(missing_ok=True)

    def keep(self) -> dict[str, socket.socket]:
        """Duplicates of all listeners, for another agent; after `serve` was cancelled, they listen on. To be called
        while it runs; `given` has them for the next time."""
        self.given = {name: listener.dup() for name, listener in self._listeners.items()}
        self._stays = True
        return self.given

    def forgo(self) -> None:
        """Another agent has them."""
        for listener in self.given.values():
            listener.close()
        self.given.clear()

    async def serve_aside(self, name: str) -> None:
        """Admin alone, at another place in the run directory, until cancelled: of an agent that was replaced."""
        admin = web.AppRunner(admin_app(self, writable=True), access_log=None, shutdown_timeout=1.0)
        await admin.setup()
        try:
            await web.SockSite(admin, unix_listener(self.run / name)).start()
            await asyncio.Event().wait()
        finally:
            await admin.cleanup()
            (self.run / name).unlink(missing_ok=True)

    def _unix(self, name: str) -> socket.socket:
        listener = self.given.pop(name, None) or unix_listener(self.run / name)
        self._listeners[name] = listener
        self._stays = False
        return listener

    async def _tcp(self, name: str, host: str, port: int, app: web.Application) -> None:
        app.on_response_prepare.append(_once)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        server = runner.server
        assert server is not None  # set up above

        def bound(listener: socket.socket) -> None:
            self._listeners[name] = listener
            self.bound[name] = listener.getsockname()[1]
            if len(self.bound) == len(fields(self.ports)):
                self.listening.set()

        try:
            await listen(host, port, server, bound, self.given.pop(name, None))
        finally:
            self.bound.pop(name, None)
            await runner.cleanup()


async def _once(request: web.Request, response: web.StreamResponse) -> None:
    """One answer per connection: the time that a stranger's connection has is then that of the answer."""
    response.force_close()


def _now() -> datetime:
    return datetime.now(UTC)


def admin_app(endpoints: Endpoints, *, writable: bool) -> web.Application:
    """With `writable` also the two endpoints that change something."""
    view, version = endpoints.view, endpoints.version

    async def kernel() -> Description | OSError:
        try:
            return await asyncio.to_thread(view.kernel)
        except OSError as error:
            return error

    async def status() -> report.Json:
        return report.status(view, await kernel(), version, _now())

    async def everything() -> report.Json:
        return dump.config_dump(view, await kernel(), version, _now())

    async def bpf() -> report.Json:
        return report.bpf(view, await kernel())

    turn = asyncio.Lock()

    async def made(make: Make) -> report.Json:
        answer = make()
        return answer if isinstance(answer, dict) else await answer

    async def in_turn(make: Make) -> report.Json:
        """One after the other, at most half of the time: who may only read may not keep the loop from deciding."""
        clock = asyncio.get_running_loop().time
        async with turn:
            began = clock()
            answer = await made(make)
            await asyncio.sleep(min(_REST_SECONDS, clock() - began))
        return answer

    def answers(make: Make) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            answer = await (made(make) if writable else in_turn(make))
            # A large mesh encodes to megabytes: that part leaves the loop to the data path.
            body = await asyncio.to_thread(report.encode, {"node": view.node} | answer)
            return web.Response(body=body, content_type="application/json")

        return handle

    reads: dict[str, Make] = {
        "/status": status,
        "/workloads": lambda: report.workloads(view),
        "/services": lambda: report.services(view),
        "/policies": lambda: report.policies(view),
        "/certificates": lambda: report.certificates(view, _now()),
        "/connections": lambda: report.connections(view, _now()),
        "/bpf": bpf,
        "/config_dump": everything,
        "/logging": endpoints.levels.read,
    }
    app = web.Application()
    for path, make in reads.items():
        app.router.add_get(path, answers(make))
    index: report.Json = {"endpoints": [*reads, *(("/quitquitquit",) if writable else ())]}
    app.router.add_get("/", answers(lambda: index))
    if writable:
        _add_writes(app, endpoints)
    return app


def _add_writes(app: web.Application, endpoints: Endpoints) -> None:
    async def logging(request: web.Request) -> web.Response:
        try:
            endpoints.levels.change(request.query)
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        return web.json_response(endpoints.levels.read())

    async def quit(request: web.Request) -> web.Response:
        asyncio.get_running_loop().call_soon(endpoints.stop)
        return web.Response(text="shutting down\n")

    app.router.add_post("/logging", logging)
    app.router.add_post("/quitquitquit", quit)


def metrics_app(scrape: Scrape) -> web.Application:
    async def metrics(request: web.Request) -> web.Response:
        content_type = negotiate(request.headers.get("Accept", ""))
        packed = "gzip" in request.headers.get("Accept-Encoding", "")
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if packed:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=await scrape.text(content_type, packed=packed), headers=headers)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/stats/prometheus", metrics)
    return app


def readiness_app(view: AgentView) -> web.Application:
    async def ready(request: web.Request) -> web.Response:
        pending = view.pending()
        if pending:
            return web.Response(status=500, text=f"not ready, pending: {', '.join(pending)}\n")
        return web.Response(text="ready\n")

    async def live(request: web.Request) -> web.Response:
        stuck = view.stuck()
        if stuck:
            return web.Response(status=500, text=f"stuck: {', '.join(stuck)}\n")
        return web.Response(text="alive\n")

    app = web.Application()
    app.router.add_get("/healthz/ready", ready, allow_head=False)
    app.router.add_get("/healthz/live", live, allow_head=False)
    return app

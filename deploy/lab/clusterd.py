"""What a cluster keeps doing: follows the objects and keeps service addresses (nftables) and names (dnsmasq) true.

`python -m deploy.lab.clusterd LAB SLOT`, in the machine's own network namespace; it enters the nodes' to write tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import watchfiles

from deploy.lab import cgroup, dns, endpoints, launch, proxy
from deploy.lab.file import replace
from deploy.lab.layout import NETNS, Layout
from deploy.lab.manifest import Key, Object
from deploy.lab.store import Store

_RESCAN = 5.0  # seconds between looks at the directory in case a notice was lost
_LOG_LIMIT = 32 << 20  # bytes; logs are in memory (/run)


def table(layout: Layout, objects: Mapping[Key, Object]) -> str:
    """The nodes' nftables text that these objects make."""
    return proxy.ruleset(
        endpoints.service_ports(objects),
        services=(str(layout.services4), str(layout.services6)),
        dns=layout.cluster_dns,
    )


def names(layout: Layout, objects: Mapping[Key, Object]) -> str:
    """The DNS server's hosts file that these objects make."""
    return dns.hosts(objects, {f"istiod.istio-system.svc.{dns.DOMAIN}": layout.control_addresses})


def digest(text: str, hosts: str, nodes: Iterable[str]) -> str:
    return hashlib.sha256("\0".join([text, hosts, *sorted(nodes)]).encode()).hexdigest()


class Clusterd:
    """Follows the store; `run` writes names and tables again whenever they change, until it is told to stop."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.store = Store(layout.cluster)
        self.tables: dict[str, str] = {}  # node -> what its table was made from
        self.names = ""

    async def run(self, stop: asyncio.Event) -> None:
        await self._reconcile()
        async for _ in watchfiles.awatch(
            self.layout.cluster,
            stop_event=stop,
            debounce=250,
            step=50,
            rust_timeout=int(_RESCAN * 1000),
            yield_on_timeout=True,
            recursive=False,
        ):
            await self._reconcile()
            self._shorten_logs()

    def _shorten_logs(self) -> None:
        """Start logs again that have grown too long; their writers append, so they go on in the same file."""
        for path in (*self.layout.logs.glob("*.log"), *self.layout.run.glob("nodes/*/agent.log")):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size > _LOG_LIMIT:
                    path.write_text(f"(older lines were removed: more than {_LOG_LIMIT >> 20} MiB)\n")

    async def _reconcile(self) -> None:
        try:
            objects = self.store.load()
        except Exception as error:
            print(
                f"cannot read {self.layout.cluster}: {error}; the tables stay as they are", file=sys.stderr, flush=True
            )
            return
        self._write_names(objects)
        text = table(self.layout, objects)
        nodes = [key.name for key in objects if key.kind == "Node"]
        await asyncio.gather(*(self._write_table(node, text) for node in nodes if self.tables.get(node) != text))
        self._tell(nodes, text)

    def _tell(self, nodes: list[str], text: str) -> None:
        """Say what is in force, for those who wait for it."""
        if not all(self.tables.get(node) == text for node in nodes):
            return
        replace(self.layout.control / "applied", digest(text, self.names, nodes))

    def _write_names(self, objects: dict[Key, Object]) -> None:
        text = names(self.layout, objects)
        if text == self.names:
            return
        replace(self.layout.control / "hosts", text)
        self.names = text
        for pid in cgroup.processes(self.layout.service_cgroup("dns")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)

    async def _write_table(self, node: str, text: str) -> None:
        path: Path = NETNS / self.layout.node_netns(node)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # the node is being made or taken down
            return
        try:
            process = await asyncio.create_subprocess_exec(
                "nft",
                "-f",
                "-",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                preexec_fn=lambda: launch.setns(handle),
            )
        finally:
            os.close(handle)
        _, said = await process.communicate(text.encode())
        if process.returncode == 0:
            self.tables[node] = text
        else:
            print(f"node {node}: nft: {said.decode(errors='replace')}", file=sys.stderr, flush=True)


async def _main(lab: str, slot: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Clusterd(Layout(name=lab, slot=slot)).run(stop)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))

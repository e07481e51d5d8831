"""One node and its pods as network namespaces, cgroups and a bpffs of our own, and workers: processes in a chosen
cgroup and netns that do with sockets what a test tells them."""

from __future__ import annotations

import ctypes
import errno
import itertools
import multiprocessing
import os
import pickle
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from bpf import Kernel, PodSlot, netns, pin
from bpf.cgroup import mounts

NODE4, NODE6 = "10.93.1.1", "fd93::1"
STRANGER4 = "203.0.113.7"  # nobody has it; captured connections never leave the pod
STRANGER6 = "2001:db8::7"
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    name: str
    ip4: str
    ip6: str
    cgroup: Path  # of the node

    @property
    def veth(self) -> str:
        """Its device in the node's netns."""
        return f"v{self.ip4.rpartition('.')[2]}"

    @property
    def mac(self) -> str:
        """Of its eth0."""
        return f"02:00:00:00:01:{self.ip4.rpartition('.')[2]}"

    @property
    def netns(self) -> Path:
        return Path("/run/netns", self.name)

    @contextmanager
    def opened(self) -> Iterator[int]:
        fd = os.open(self.netns, os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)

    @property
    def cookie(self) -> int:
        with self.opened() as fd:
            return netns.cookie(fd)


class Rig:
    """Everything here is removed by `down`, whatever a test did."""

    def __init__(self) -> None:
        self.tag = f"gkt-{os.getpid()}-{next(_numbers)}"
        root = min(mounts("cgroup2"), key=lambda p: len(p.parts))
        self.cgroup = root / self.tag
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.tag}-"))
        self.bpffs = self.folder / "bpf"
        self.pins = self.bpffs / "pins"
        self.pods: list[Pod] = []
        self.workers: list[Worker] = []
        self.kernels: list[Kernel] = []
        self.node = Pod(name=f"{self.tag}-n", ip4=NODE4, ip6=NODE6, cgroup=self.cgroup)

    def up(self) -> None:
        self.bpffs.mkdir()
        run("mount", "-t", "bpf", "bpf", str(self.bpffs))
        for name in ("", "agent", "kubelet", "host", "pods"):
            (self.cgroup / name).mkdir()
        node = self.node.name
        run("ip", "netns", "add", node)
        run("ip", "-n", node, "link", "set", "lo", "up")
        run("ip", "netns", "exec", node, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        run("ip", "-n", node, "addr", "add", f"{NODE4}/32", "dev", "lo")
        run("ip", "-n", node, "addr", "add", f"{NODE6}/128", "dev", "lo", "nodad")

    def add_pod(self) -> Pod:
        n = len(self.pods) + 10
        pod = Pod(name=f"{self.tag}-p{n}", ip4=f"10.93.0.{n}", ip6=f"fd93::1:{n}", cgroup=self.cgroup)
        self.pods.append(pod)
        node, veth = self.node.name, pod.veth
        run("ip", "netns", "add", pod.name)
        script = f"""
            netns exec {pod.name} sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
            -n {pod.name} link set lo up
            -n {node} link add {veth} type veth peer name eth0 netns {pod.name}
            -n {node} link set {veth} address 02:00:00:00:00:01 up
            -n {node} addr add 169.254.1.1/32 dev {veth}
            -n {node} -6 addr add fe80::1/64 dev {veth} nodad
            -n {node} route add {pod.ip4}/32 dev {veth} src {NODE4}
            -n {node} -6 route add {pod.ip6}/128 dev {veth} src {NODE6}
            -n {pod.name} link set eth0 address {pod.mac} up
            -n {pod.name} addr add {pod.ip4}/32 dev eth0
            -n {pod.name} -6 addr add {pod.ip6}/128 dev eth0 nodad
            -n {pod.name} route add 169.254.1.1/32 dev eth0
            -n {pod.name} route add default via 169.254.1.1
            -n {pod.name} -6 route add default via fe80::1 dev eth0
        """
        for line in script.strip().splitlines():
            run("ip", *line.split())
        return pod

    def worker(self, cgroup: str, where: Pod) -> Worker:
        """`cgroup`: agent, kubelet, host, pods."""
        worker = Worker(self.cgroup / cgroup, where.netns)
        self.workers.append(worker)
        return worker

    def kernel(self, **options: Any) -> Kernel:
        options = {"cgroup": self.cgroup, "agent_cgroup": self.cgroup / "agent",
                   "kubelet_cgroup": self.cgroup / "kubelet", **options}  # fmt: skip
        kernel = Kernel.open(self.pins, **options)
        kernel.ledger.tell_each(True)
        self.kernels.append(kernel)
        return kernel

    def down(self) -> None:
        for worker in self.workers:
            worker.kill()
        try:
            pin.remove(self.pins)
        finally:
            self._remove()

    def _remove(self) -> None:
        for kernel in self.kernels:
            kernel.close()
        for pod in (*self.pods, self.node):
            subprocess.run(["ip", "netns", "del", pod.name], capture_output=True, check=False)
        subprocess.run(["umount", str(self.bpffs)], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("agent", "kubelet", "host", "pods", ""):
            self.remove_cgroup(self.cgroup / name)

    @staticmethod
    def ip(*arguments: str) -> None:
        run("ip", *arguments)

    @staticmethod
    def remove_cgroup(path: Path) -> None:
        """It is busy for a moment after its last process was reaped."""
        for _ in range(200):
            try:
                path.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                select.select([], [], [], 0.02)
        path.rmdir()


@contextmanager
def within(cgroup: Path) -> Iterator[None]:
    """This process is in the cgroup meanwhile; sockets made now belong to it for life, accepted ones too."""
    was = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    root = min(mounts("cgroup2"), key=lambda p: len(p.parts))
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (root / was.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))


class AgentListeners:
    """The listening sockets of an agent in one pod, on arbitrary ports, both families."""

    def __init__(self, pod: Pod) -> None:
        self.sockets: dict[str, socket.socket] = {}
        with within(pod.cgroup / "agent"), pod.opened() as fd, netns.entered(fd):
            for kind in ("outbound", "plaintext", "tunnel"):
                for version, family, any_address in ((4, socket.AF_INET, "0.0.0.0"), (6, socket.AF_INET6, "::")):
                    s = socket.socket(family, socket.SOCK_STREAM)
                    if version == 6:
                        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    s.bind((any_address, 0))
                    s.listen(1024)
                    s.settimeout(10)
                    self.sockets[f"{kind}{version}"] = s

    def __getattr__(self, name: str) -> int:
        try:
            return self.sockets[name].fileno()
        except KeyError:
            raise AttributeError(name) from None

    def accept(self, kind: str, timeout: float = 10) -> tuple[socket.socket, tuple[Any, ...]]:
        self.sockets[kind].settimeout(timeout)
        accepted, peer = self.sockets[kind].accept()
        accepted.settimeout(10)
        return accepted, peer

    def waiting(self) -> set[str]:
        """Listeners at which a connection waits."""
        poll = select.poll()
        for s in self.sockets.values():
            poll.register(s, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(0)}
        return {name for name, s in self.sockets.items() if s.fileno() in ready}

    def close(self) -> None:
        for s in self.sockets.values():
            s.close()


def enrol(kernel: Kernel, pod: Pod, listeners: AgentListeners | None = None, instance: str | None = None) -> PodSlot:
    with pod.opened() as fd:
        return kernel.enrol(instance or pod.name, fd, [pod.ip4, pod.ip6], listeners)


class Sockets:
    """What a worker can do; sockets are named by number. All calls return, or raise in the test."""

    def __init__(self) -> None:
        self.sockets: dict[int, socket.socket] = {}
        self.numbers = itertools.count(1)

    def _keep(self, s: socket.socket) -> int:
        number = next(self.numbers)
        self.sockets[number] = s
        s.settimeout(10)
        return number

    def listen(self, host: str, port: int = 0, dual: bool = False) -> tuple[int, int]:
        """(number, port)"""
        s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in host:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        s.bind((host, port))
        s.listen(512)
        return self._keep(s), s.getsockname()[1]

    def socket(self, family: int = socket.AF_INET, v6only: bool = False, bind: tuple[str, int] | None = None,
               device: str = "", options: list[tuple[int, int, int]] | None = None) -> int:  # fmt: skip
        s = socket.socket(family)
        if v6only:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if device:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        for option in options or ():
            s.setsockopt(*option)
        if bind:
            s.bind(bind)
        return self._keep(s)

    def connect(self, number: int, host: str, port: int) -> None:
        self.sockets[number].connect((host, port))

    def dial(self, host: str, port: int) -> int:
        number = self.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            self.connect(number, host, port)
        except OSError:
            self.close(number)
            raise
        return number

    def dial_nonblocking(self, number: int, host: str, port: int) -> int:
        """connect() on a non-blocking socket; SO_ERROR when it is decided."""
        s = self.sockets[number]
        s.setblocking(False)
        code = s.connect_ex((host, port))
        assert code in (0, errno.EINPROGRESS), errno.errorcode[code]
        select.select([], [s], [], 10)
        code = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        s.settimeout(10)
        return code

    def fast_open(self, host: str, port: int, data: bytes) -> int:
        s = socket.socket()
        s.sendto(data, socket.MSG_FASTOPEN, (host, port))
        return self._keep(s)

    def wait_forever(self, number: int) -> None:
        self.sockets[number].settimeout(None)

    def disconnect(self, number: int) -> None:
        address = struct.pack("=H14x", socket.AF_UNSPEC)
        if _libc.connect(self.sockets[number].fileno(), address, len(address)):
            raise OSError(ctypes.get_errno(), "disconnect")

    def accept(self, number: int, timeout: float = 10) -> tuple[int, tuple[Any, ...]]:
        self.sockets[number].settimeout(timeout)
        s, peer = self.sockets[number].accept()
        return self._keep(s), peer

    def names(self, number: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """getsockname(), getpeername()"""
        s = self.sockets[number]
        return s.getsockname()[:2], s.getpeername()[:2]

    def sockname(self, number: int) -> tuple[Any, ...]:
        return self.sockets[number].getsockname()[:2]

    def cookie(self, number: int) -> int:
        return int(struct.unpack("=Q", self.sockets[number].getsockopt(socket.SOL_SOCKET, 57, 8))[0])

    def send(self, number: int, data: bytes) -> None:
        self.sockets[number].sendall(data)

    def recv(self, number: int, size: int = 65536) -> bytes:
        return self.sockets[number].recv(size)

    def shutdown(self, number: int) -> None:
        self.sockets[number].shutdown(socket.SHUT_WR)

    def close(self, number: int) -> None:
        self.sockets.pop(number).close()

    def socket_in(self, path: str, family: int, bind: tuple[str, int] | None = None) -> int:
        """A socket in another netns, as the agent makes them."""
        fd = os.open(path, os.O_RDONLY)
        try:
            with netns.entered(fd):
                number = self.socket(family, bind=bind)
        finally:
            os.close(fd)
        return number

    def call(self, function: Any, *args: Any) -> Any:
        """Any function of a test module, in this process."""
        return function(self, *args)


class Worker:
    """A forked process; calls of `Sockets` go to it and come back. Dies with `kill`."""

    def __init__(self, cgroup: Path, where: Path) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            kept = theirs.fileno()  # nothing else: an inherited listener would live on in here
            os.closerange(3, kept)
            os.closerange(kept + 1, 65536)
            _serve(theirs, cgroup, where)
        theirs.close()
        self._alive = True
        self._result()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Sockets, name):
            raise AttributeError(name)

        def call(*args: Any, **options: Any) -> Any:
            self._ours.send_bytes(pickle.dumps((name, args, options)))
            return self._result()

        return call

    def start(self, name: str, *args: Any, **options: Any) -> None:
        """Begin a call; `finish` waits for it."""
        self._ours.send_bytes(pickle.dumps((name, args, options)))

    def finish(self) -> Any:
        return self._result()

    def answered(self, seconds: float) -> bool:
        """Whether `finish` would not wait."""
        return bool(self._ours.poll(seconds))

    def _result(self) -> Any:
        assert self._ours.poll(60), "the worker does not answer"
        good, value = pickle.loads(self._ours.recv_bytes())
        if not good:
            raise value
        return value

    def kill(self) -> None:
        if self._alive:
            self._alive = False
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._ours.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()


def _serve(pipe: Any, cgroup: Path, where: Path) -> None:
    try:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        fd = os.open(where, os.O_RDONLY)
        assert _libc.setns(fd, 0x40000000) == 0
        os.close(fd)
        sockets = Sockets()
        pipe.send_bytes(pickle.dumps((True, None)))
        while True:
            name, args, options = pickle.loads(pipe.recv_bytes())
            try:
                answer = (True, getattr(sockets, name)(*args, **options))
            except BaseException as error:
                if not isinstance(error, OSError):
                    traceback.print_exc()
                answer = (False, error)
            pipe.send_bytes(pickle.dumps(answer))
    except (EOFError, KeyboardInterrupt):
        os._exit(0)
    except BaseException as error:
        pipe.send_bytes(pickle.dumps((False, error)))
        os._exit(1)

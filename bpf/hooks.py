"""Attaching the programs of one layout: to the node's cgroup, to a pod's netns, to the maps that call them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from bpf import load, pin, syscall
from bpf.artifact import Artifact
from bpf.cgroup import Cgroup
from bpf.layouts import COOKIE
from bpf.programs import CGROUP_ORDER, hook
from bpf.registry import PodSlot

_TRACEPOINT = "sock_recv_length"


class Hooks:
    """`folder` holds the layout's pins, `fds` its maps."""

    __slots__ = ("_artifact", "_essence", "_fds", "_folder")

    def __init__(self, folder: Path, artifact: Artifact, fds: Mapping[str, int]) -> None:
        self._folder = folder
        self._artifact = artifact
        self._fds = fds
        self._essence = b""  # of the sk_lookup programs; made when first needed

    def attach_cgroup(self, node: Cgroup) -> None:
        """New programs where links are, new links where there are none."""
        target = os.open(node.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in CGROUP_ORDER:
                self._attach(name, target, node)
        finally:
            os.close(target)

    def attach_options(self, node: Cgroup, wanted: bool) -> None:
        """It taxes every setsockopt() of the node's cgroup, so it is attached only when it is wanted."""
        if not wanted:
            pin.unlink(self._folder / "link_setsockopt")
            return
        target = os.open(node.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._attach("setsockopt", target, node)
        finally:
            os.close(target)

    def attach_messages(self, wanted: bool) -> None:
        """What is sent by a socket in the sockhash meets the program from now on."""
        if wanted:
            with self._program("message") as program:
                syscall.attach_to_map(program, self._fds["accelerated"], hook("message").attach)

    def attach_netns(self, pod: PodSlot, netns_fd: int) -> None:
        """What is attached already stays: to load a program takes milliseconds, and a node has hundreds of pods."""
        path, inode, title = self._folder / f"lookup_{pod.slot}", os.fstat(netns_fd).st_ino, self._title(pod)
        link = syscall.open_pin(path)
        if link is not None:
            try:
                if _is_attached(pin.netns_link(link), title, inode):
                    return
            finally:
                os.close(link)
        with self._program("lookup", pod.cookie, title) as program:
            pin.link(path, program=program, target=netns_fd, attach=hook("lookup").attach, same=inode)

    def replace_netns(self, pods: Iterable[PodSlot]) -> None:
        """These programs for the pods that a former agent enrolled in this layout; their netns need not be at hand."""
        for pod in pods:
            link = syscall.open_pin(self._folder / f"lookup_{pod.slot}")
            if link is None:
                continue
            try:
                facts, title = pin.netns_link(link), self._title(pod)
                # Without a target the netns is gone, and with it what was attached.
                if facts.target and not _is_attached(facts, title, facts.target):
                    with self._program("lookup", pod.cookie, title) as program:
                        syscall.update_link(link, program)
            finally:
                os.close(link)

    def attach_acceleration(self, wanted: bool) -> None:
        """The tracepoint taxes every receive on the machine, so it is attached only when it is wanted."""
        path = self._folder / "link_received"
        if not wanted:
            pin.unlink(path)
            return
        with self._program("received") as program:
            syscall.put_program(self._fds["stages"], 0, program)
        if path.exists():
            return  # the link of a raw tracepoint cannot be updated: it is a stub that calls stages[0]
        with self._program("received_stub") as program:
            link = syscall.open_tracepoint(_TRACEPOINT, program)
        try:
            syscall.pin(link, path)
        finally:
            os.close(link)

    def _attach(self, name: str, target: int, node: Cgroup) -> None:
        with self._program(name) as program:
            path = self._folder / f"link_{name}"
            pin.link(path, program=program, target=target, attach=hook(name).attach, same=node.id)

    @contextmanager
    def _program(self, name: str, netns: int = 0, title: str = "") -> Iterator[int]:
        fd = load.new_program(self._artifact, name, self._fds, netns, title)
        try:
            yield fd
        finally:
            os.close(fd)

    def _title(self, pod: PodSlot) -> str:
        """The kernel's name of a pod's program, 15 characters; equal names are equal programs."""
        self._essence = self._essence or load.essence(self._artifact, "lookup", self._fds)
        return f"lookup_{blake2b(self._essence + COOKIE.pack(pod.cookie), digest_size=4).hexdigest()}"


def _is_attached(link: pin.LinkFacts, title: str, netns: int) -> bool:
    return link.target == netns and pin.program_name(link.program) == title

"""Which programs there are and where each of them is attached. The names are those of the functions in bpf/src."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Place(StrEnum):
    CGROUP = "cgroup"  # a link to the node's cgroup
    NETNS = "netns"  # one instance and one link per pod
    OPTIONS = "options"  # a link to the node's cgroup, only where there is acceleration
    MAP = "map"  # attached to the sockhash
    TRACEPOINT = "tracepoint"
    STAGE = "stage"  # called by the tracepoint's stub
    AGENT = "agent"  # run by the agent, as a system call


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A program; `kind` is enum bpf_prog_type, `attach` enum bpf_attach_type."""

    name: str
    kind: int
    attach: int
    place: Place


_SCHED_CLS, _SOCK_OPS, _SK_MSG, _RAW_TRACEPOINT, _SOCK_ADDR, _SOCKOPT, _SK_LOOKUP = 3, 13, 16, 17, 18, 25, 30

HOOKS = (
    Hook(name="connect4", kind=_SOCK_ADDR, attach=10, place=Place.CGROUP),
    Hook(name="connect6", kind=_SOCK_ADDR, attach=11, place=Place.CGROUP),
    Hook(name="getpeername4", kind=_SOCK_ADDR, attach=29, place=Place.CGROUP),
    Hook(name="getpeername6", kind=_SOCK_ADDR, attach=30, place=Place.CGROUP),
    Hook(name="getsockname4", kind=_SOCK_ADDR, attach=31, place=Place.CGROUP),
    Hook(name="getsockname6", kind=_SOCK_ADDR, attach=32, place=Place.CGROUP),
    Hook(name="sockops", kind=_SOCK_OPS, attach=3, place=Place.CGROUP),
    Hook(name="setsockopt", kind=_SOCKOPT, attach=22, place=Place.OPTIONS),
    Hook(name="message", kind=_SK_MSG, attach=7, place=Place.MAP),
    Hook(name="received", kind=_RAW_TRACEPOINT, attach=0, place=Place.STAGE),
    Hook(name="received_stub", kind=_RAW_TRACEPOINT, attach=0, place=Place.TRACEPOINT),
    Hook(name="promote", kind=_SCHED_CLS, attach=0, place=Place.AGENT),
    Hook(name="demote", kind=_SCHED_CLS, attach=0, place=Place.AGENT),
    Hook(name="lookup", kind=_SK_LOOKUP, attach=36, place=Place.NETNS),
)

# Names order matters on attach: what serves a socket's life stands before what makes new ones.
CGROUP_ORDER = ("sockops", "getpeername4", "getpeername6", "getsockname4", "getsockname6", "connect4", "connect6")

SHARED_MAPS = ("enrolled", "steered")  # pinned beside the layouts, not in one
LAYOUT_MARKER = 0x4C61796F75744964  # account.c
NETNS_MARKER = 0x4E6574436F6F6B69  # lookup.c
SEQUENCE_MARKERS = {  # sequence.c; by member of struct tcp_sock
    "write_seq": 0x5772697465536571,
    "copied_seq": 0x436F706965645371,
    "rcv_nxt": 0x5263764E65787421,
    "snd_una": 0x536E64556E61636B,
}
FAST_OPEN_MARKERS = (0x4673744F704E5271, 0x4673744F704E4362)  # fastopen.c: request, bit


def hook(name: str) -> Hook:
    return next(h for h in HOOKS if h.name == name)

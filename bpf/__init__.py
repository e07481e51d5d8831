"""The kernel side: C in bpf/src, Python beside it.

    kernel      Kernel: what the agent uses. Open, enrol pods, steer connections, count, describe
    enrolment   what the maps hold of a pod, and its own program
    programs    which programs there are, where each is attached
    compile     sources -> artifact, by bcc in a short-lived process (`python -m bpf.compile OUT`)
    artifact    the compiled programs and map definitions as a file: maps by name, constants by marker
    load        artifact -> maps and programs in the kernel, without a compiler
    hooks       attach the programs: to the node's cgroup, to a pod's netns
    pin         names in a bpffs directory; adopt what a former agent left, replace it without a gap
    direct      the direct path: targets, verdicts, flows
    ledger      how ended flows are told: by themselves, or together
    services    what connections to Services are spread over
    promote     takes direct flows from TCP to socket to socket, and back
    nudge       wakes a reader of a direct flow
    registry    which pods are enrolled, and their slots
    maps        one map: bytes in, bytes out
    layouts     the structs that C and Python share (bpf/src/layouts.h), and the text of addresses
    selftest    whether acceleration keeps its promises on this kernel
    facts       what is loaded and how full it is
    events      the ring buffers of direct flows and of refusals
    reasons     writes bpf/src/reason.h from mesh.reason
    preflight   what this kernel and this process lack, and the cure
    cgroup, netns, btf, syscall    the kernel's interfaces, one file each

In the kernel a connection meets the sources in this order: connect.c (where to), services.c (to which endpoint),
direct.c (whether without the agent), sockops.c and flows.c (its life), lookup.c (whether it may come in), names.c (what
the application sees), accelerate.c, promote.c and legs.c (its bytes).

Pins: PIN/enrolled, PIN/steered and PIN/registry outlive layouts; PIN/<layout>/ holds the maps and links of one layout.
A netns is served by the layout that its entry in `enrolled` names: writing it switches a pod over, atomically. Old
programs stay with old flows until those are gone.
"""

from bpf.direct import DirectFlow, Mode, Target, VerdictEntry
from bpf.error import PreflightError
from bpf.kernel import Kernel
from bpf.layouts import DirectBarred, DirectClosed, DirectDrained, DirectOpened, DirectReady, Event, Mismatch
from bpf.ledger import DirectTally
from bpf.promote import Outcome
from bpf.registry import PodSlot

__all__ = [
    "DirectBarred",
    "DirectClosed",
    "DirectDrained",
    "DirectFlow",
    "DirectOpened",
    "DirectReady",
    "DirectTally",
    "Event",
    "Kernel",
    "Mismatch",
    "Mode",
    "Outcome",
    "PodSlot",
    "PreflightError",
    "Target",
    "VerdictEntry",
]

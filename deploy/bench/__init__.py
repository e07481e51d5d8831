"""Benchmarks: what the mesh costs, beside nothing and beside Envoy, measured in one run on one machine.

    load.c, load_*.h   the load: a small C program, both ends, every byte verified
    load.py            compiles it when first used, runs it, reads its answer
    ground.py          where it runs: two nodes and their pods as network namespaces, made by the lab's own fabric
    seat.py            a place for a process: a network namespace and a cgroup
    awake.py           CPUs that do not halt meanwhile
    usage.py           what processes used: CPU by cgroup, memory by process
    authority.py       certificates for the Envoy pairs, with SPIFFE names, as a mesh would issue them
    envoy.py           Envoy's configuration (pure) and its process
    columns.py         what is compared: prepare → where the client runs, what it dials, what to account
    figures.py         what is measured, and medians of ratios (pure)
    targets.py         how our tunnel stands against the better Envoy (pure)
    rounds.py          interleaved rounds: every column's turn at a figure comes right after the other columns'
    report.py          the table for people, JSON for programs
    command.py         `gossamer bench tunnel`, `gossamer bench direct`
    fairness.py        `gossamer bench fairness`: latency beside a greedy neighbour
    scaling.py         `gossamer bench scaling`: threads, and connections as their number grows
    leak.py            `gossamer bench leak`: what is held after many connections, changes of policy and renewals
    crowd.py           a full node's pods and policies as objects (pure)
    node.py            such a node, its agent and controller
    policy.py          `gossamer bench policy`: how long until a change is in force there, and what it costs
    enrolment.py       `gossamer bench enrolment`: how long until all pods are enrolled, adopted, taken over
    memory.py          `gossamer bench memory`: idle connections, and readers who never read
    revocation.py      `gossamer bench revocation`: how soon a policy ends what it permits no longer
    conduct.py         a measurement as a command: progress, Ctrl-C, sheets

All columns have the same shape: client pod – node – fabric – node – server pod, over the same kind of veth, routed the
same way. The columns without a mesh share one pair of pods; docs/benchmarks.md says what that means and how to read the
figures. Nothing here is a test of speed: a run fails when bytes are wrong or take another way than the column says.
"""

from deploy.bench.command import register

__all__ = ["register"]

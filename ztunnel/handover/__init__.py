"""A planned restart: a new agent takes over from the one that runs with the same --run, and no connection is refused.

    message     what the two say to each other, and its version
    channel     messages and file descriptors over a unix socket
    giver       the old agent's side: pauses, gives, and either drains or, if the new one fails, goes on
    heir        the new agent's side: asks, takes, confirms

In the order of events; a line is one message:

    new  ready to serve: kernel side compiled, self-tests done
    new  Ask            RUN/handover.sock, root only
    old  Answer         YOURS; or END_FIRST (another version, or it is stopping): it drains, new begins when it is gone
    old  (pauses: accepts nothing, writes nothing to the kernel, hears no controller; connections wait in the listeners)
    old  Estate         certificates with keys, state, direct path, and the node's listeners
    old  PodEstate …    one per enrolled pod, with its listeners
    new  (opens the kernel side, serves every pod)
    new  Taken
    old  Released       and drains: GOAWAY, open streams go on until the drain deadline, obeying its successor's journal

The old agent alone judges. If `Taken` does not come, it says Withdrawn, puts the kernel side back and goes on, and the
new one ends. If it is the old one that dies, the new one has all it needs. A listener is the same socket in both
processes: what was established and not yet accepted is accepted by whoever is next, and the kernel's slots still name
it. So nobody shuts one down; each closes its descriptors.
"""

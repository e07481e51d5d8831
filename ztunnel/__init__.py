"""The node agent: enrols pods, captures their connections, decides, and carries them through mutual-TLS tunnels.

The deciding side, in the order of a connection:

    orders        the seam: facts from the engine, one order back per connection
    decider       facts in, orders out, each from one snapshot
    capture       outbound: what a pod dialled, and where that goes
    inbound       who asks for a pod, by tunnel or in plaintext, and whether it may
    standing      what one answer says about all connections of its kind
    headers       baggage, forwarded, traceparent of a CONNECT
    connections   the live table; every new snapshot re-decides what is open
    older         connections that a pod had before it was enrolled
    direct        who may talk in the kernel, without us; hearing: what it tells of that; flows: as records

What it decides from, and about whom:

    sync          the delta stream from the controller; holdings: what it has brought; journal: the copy on disk
    uplink        the way to the controller; certificates: one per identity; csr: asking for them
    pods          records of this node's pods; step: what one needs next; enrol: doing it; roster: all of them;
                  tenants: whose network namespace is which

A planned restart:

    handover/     the conversation of the old agent and the new one · succession: what is handed over, in which order
    gate          nobody enrols or leaves meanwhile · premises: the directory and the cgroup that both agents share

    pump/         the moving side behind the seam: native threads · metrics/, access_log, admin/, cli/: seeing it
    agent         all of it put together; shown: what is seen of it; config: its settings; __main__: `python -m ztunnel`
"""

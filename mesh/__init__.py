"""The domain, shared by all: pure, no sockets, no clock, no randomness (now and rng are arguments).

identity    SpiffeId, the name a workload proves with its certificate
model       Workload, Service, Policy, Flow: frozen values, as the controller sends them
reason      why something was refused or ended: one closed enum for BPF counters, logs, metrics and wire replies
snapshot    one frozen, versioned view of all of these, with indexes; apply(delta) gives the next
policy      decide(snapshot, arrival) -> Verdict: may this peer reach this workload?
prepared    a policy made ready for many questions
route       pick(snapshot, flow, rng) -> Tunnel | Plain | Refuse: where does a connection go?
control     the messages between controller and node agent (codec only)
resources   the Kubernetes and Istio kinds we accept, typed; validation is generated from the types
http2       a sans-io HTTP/2 connection over libnghttp2
"""

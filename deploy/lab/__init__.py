"""A cluster on one machine, not a mock: nodes and pods are network namespaces, pods run real processes.

The lab plays what Kubernetes would play around the mesh, and nothing of the mesh itself:

    API server, scheduler   manifest.py reads Kubernetes YAML, plan.py turns it into objects to put and to delete
                            (pure), store.py keeps them, one YAML file each: also the controller's source directory
    machines and CNI        layout.py derives every name and address from the lab's name; fabric.py makes the
                            namespaces, links and routes; cgroup.py the cgroups
    kubelet                 kubelet.py, one process per node, runs pods (pod.py): container.py (what to run:
                            bubblewrap's arguments), launch.py (enter cgroup and namespaces, exec), probe.py
    kube-proxy, DNS         clusterd.py, one process per lab, follows the store: endpoints.py (which pods stand behind
                            which service), proxy.py (nftables text), dns.py (dnsmasq's records)
    the mesh                agents.py starts the real agent on each node and the real controller
    you                     cluster.py is the lab as an object (up, apply, exec, down…); command.py its command line,
                            status.py its tables, wire.py what is on the fabric,
                            demo.py the guided tour

A lab is named. Everything it makes carries its name, and `down` finds all of it again by that name alone, also after
a crash.
"""

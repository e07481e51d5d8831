"""A cluster on one machine: nodes and pods are network namespaces, pods run real processes."""

"""Objects -> what node agents need. Pure functions, one file per kind of result.

settings              trust domain, cluster, root namespace
selection             which selectors select a pod
authorization         AuthorizationPolicy -> Policy
peer_authentication   PeerAuthentication -> DENY policies against plaintext
service               Service -> Service, and its ports at one endpoint
workload              Pod -> Workload
snapshot              all of them, with hashes, conditions and the identities of each node
"""

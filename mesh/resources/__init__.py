"""The Kubernetes and Istio kinds we accept, typed. Validation and schemas come from the types, written once.

document    text of a YAML file -> plain objects: bounded, no tags, no duplicate keys (`load`)
parse       a plain object -> a typed one, or ParseError: object, field, cause, cure (`parse`, `schema`, `dump`)
fault       ParseError, and the Invalid that checks raise
check       small validators: names, labels, CIDRs, ports
meta        ObjectMeta, OwnerReference, LabelSelector, Condition
cluster     Namespace, Node, ServiceAccount, ConfigMap
pod         Pod, its containers, probes and status
deployment  Deployment, ReplicaSet
service     Service
security    AuthorizationPolicy, PeerAuthentication

Kubernetes' own kinds ignore fields we do not use (a real API server has hundreds); in the policy kinds an unknown
field is refused, because a policy that is half understood protects nothing.
"""

from mesh.resources.cluster import ConfigMap, Namespace, Node, ServiceAccount
from mesh.resources.deployment import Deployment, ReplicaSet
from mesh.resources.document import load
from mesh.resources.fault import Invalid, ParseError
from mesh.resources.meta import Condition, LabelSelector, ObjectKey, ObjectMeta
from mesh.resources.parse import KINDS, Object, dump, key_of, parse, schema, without_nulls
from mesh.resources.pod import Pod
from mesh.resources.security import AuthorizationPolicy, PeerAuthentication
from mesh.resources.service import Service

__all__ = [
    "KINDS",
    "AuthorizationPolicy",
    "Condition",
    "ConfigMap",
    "Deployment",
    "Invalid",
    "LabelSelector",
    "Namespace",
    "Node",
    "Object",
    "ObjectKey",
    "ObjectMeta",
    "ParseError",
    "PeerAuthentication",
    "Pod",
    "ReplicaSet",
    "Service",
    "ServiceAccount",
    "dump",
    "key_of",
    "load",
    "parse",
    "schema",
    "without_nulls",
]

"""The control plane: reads what people want, translates it to what node agents need, and signs their certificates.

sources     where objects come from; a directory of YAML for now
translate   objects -> workloads, services and policies with their hashes: pure
state       the newest translation, what nodes reported, and who waits for the next one
stream      one node's stream: hello, one update in flight, ack and nack
serve       TLS and HTTP: /v1/stream and /v1/certificates, authorised by a node's token
tokens      the nodes' bootstrap tokens
ca          the root, leaf certificates for workloads, the controller's own certificate
admin       status over a unix socket, metrics and readiness over HTTP
metrics     the Prometheus series

A change travels: file event -> sources -> translate -> state -> every stream -> ack, or nack and a condition.
"""

"""Workload identity: the SPIFFE id that a certificate's URI SAN carries."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PATH = re.compile(
    r"spiffe://(?P<trust_domain>[a-z0-9._-]{1,255})"
    r"/ns/(?P<namespace>[A-Za-z0-9._-]{1,253})/sa/(?P<service_account>[A-Za-z0-9._-]{1,253})"
)


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """`spiffe://<trust domain>/ns/<namespace>/sa/<service account>` (SPIFFE-ID §2, Istio's path form)."""

    trust_domain: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @property
    def principal(self) -> str:
        """The form AuthorizationPolicy compares with: no scheme."""
        return str(self)[len("spiffe://") :]

    @classmethod
    def parse(cls, uri: str) -> SpiffeId:
        """Parse a URI SAN; ValueError if it is not of Istio's five-part form."""
        found = _PATH.fullmatch(uri)
        if found is None:
            raise ValueError(f"{uri!r} is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>")
        return cls(**found.groupdict())


def first_spiffe_id(uris: tuple[str, ...]) -> SpiffeId | None:
    """The peer's identity for policy and metrics: the first URI SAN that parses; None if there is none."""
    for uri in uris:
        try:
            return SpiffeId.parse(uri)
        except ValueError:
            continue
    return None

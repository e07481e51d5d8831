"""What is wrong with an object: which one, where, why, and what to do about it."""

from __future__ import annotations


class Invalid(ValueError):
    """A field does not hold what it must. `path` starts at the object: `spec.rules[0].to[1].operation.ports[0]`."""

    def __init__(self, path: str, cause: str, cure: str = "") -> None:
        super().__init__(f"{path}: {cause}; {cure}" if cure else f"{path}: {cause}")
        self.path = path
        self.cause = cause
        self.cure = cure


class ParseError(ValueError):
    """An object or a whole file was refused. Empty `kind` and `name`: it cannot be said which object it is.

    `message` reads `reviews-policy (default): spec.rules[0].from[0].source.ipBlocks[1]: "10.0.0/8" is not a CIDR; did
    you mean 10.0.0.0/8?`; `str()` puts file and kind before it.
    """

    def __init__(
        self,
        *,
        file: str,
        cause: str,
        cure: str = "",
        path: str = "",
        kind: str = "",
        namespace: str = "",
        name: str = "",
    ) -> None:
        self.file = file
        self.kind = kind
        self.namespace = namespace
        self.name = name
        self.path = path
        self.cause = cause
        self.cure = cure
        self.message = ": ".join(part for part in (self._who(), path, f"{cause}; {cure}" if cure else cause) if part)
        object_kind = f"{kind} " if kind and name else f"{kind}: " if kind else ""
        super().__init__(f"{file}: {object_kind}{self.message}")

    def _who(self) -> str:
        return f"{self.name} ({self.namespace})" if self.namespace and self.name else self.name

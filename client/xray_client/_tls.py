"""What a secure connection needs: whom to trust, and who we are."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ._errors import TLSFailed

Pem: TypeAlias = "str | os.PathLike[str] | bytes"

_MARK = b"-----BEGIN "


@dataclass(frozen=True, slots=True)
class TLS:
    """How the connection is secured. Each of the first three is a path, or the PEM itself as bytes.

    Args:
        ca: Certificates of the authorities that the server's certificate may come from; None = those that gRPC brings.
        cert: This client's certificate, for a server that asks for one (mutual TLS).
        key: The private key of `cert`.
        server_name: Name to look for in the certificate of every server, where that is not the host connected to.

    Raises:
        ValueError: One of `cert` and `key` without the other.

    Example:
        >>> TLS(ca="ca.pem", cert="me.pem", key="me.key")
        TLS(ca='ca.pem', cert='me.pem', server_name='')
    """

    ca: Pem | None = None
    cert: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("a client certificate needs its key, and a key its certificate: give both or neither")

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The PEM of `ca`, `key` and `cert`, in the order that gRPC takes them; None where not given.

        Raises:
            TLSFailed: A file cannot be read or holds no PEM.
        """
        return _pem(self.ca, "ca"), _pem(self.key, "key"), _pem(self.cert, "cert")


def _pem(value: Pem | None, what: str) -> bytes | None:
    if value is None:
        return None
    name = "" if isinstance(value, bytes) else os.fspath(value)
    try:
        data = value if isinstance(value, bytes) else Path(value).read_bytes()
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        raise TLSFailed(f"the TLS {what} cannot be read: {reason}", remedy="check the path", source=name) from err
    if _MARK not in data:
        raise TLSFailed(f"the TLS {what} holds no PEM", remedy="convert it to PEM, for example by openssl", source=name)
    return data

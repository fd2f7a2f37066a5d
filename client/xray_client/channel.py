"""Options and credentials of a gRPC channel to Triton: for this client, and for tools that use NVIDIA's own."""

from __future__ import annotations

from typing import Any

from ._config import TLS, Endpoints


def channel_options(endpoints: Endpoints, tls: TLS | None = None) -> list[tuple[str, Any]]:
    """Return the channel options that a connection to these servers needs.

    Args:
        endpoints: The servers, such as `Endpoints.parse("127.0.0.1:8001")`.
        tls: Security of the connection; None = no TLS.
    """
    options: list[tuple[str, Any]] = []
    if endpoints.loopback:
        # If http_proxy is set, gRPC sends even calls to this machine through the proxy.
        options.append(("grpc.enable_http_proxy", 0))
    if tls is not None and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def channel_credentials(tls: TLS | None) -> Any:
    """Return the `grpc.ChannelCredentials` for TLS; None without TLS.

    Raises:
        TLSFailed: A certificate or key cannot be read or is not PEM.
    """
    if tls is None:
        return None
    import grpc

    return grpc.ssl_channel_credentials(*tls.read())

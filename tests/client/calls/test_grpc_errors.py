"""The words of gRPC and Triton 2.51, as they were heard, and the error that each becomes."""

from __future__ import annotations

import pytest

from xray_client import (
    AuthenticationFailed,
    DeadlineExceeded,
    ModelNotFound,
    ProtocolMismatch,
    QueueFull,
    RequestRejected,
    ServerError,
    ServerNotReady,
    ServerUnreachable,
    ShuttingDown,
    TLSFailed,
    XrayError,
)
from xray_client._calls.grpc_errors import Retry, translate

REFUSED = (
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
    "Failed to connect to remote host: Connection refused"
)
TLS = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Tls handshake failed (TSI_PROTOCOL)"
HTTP = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:1: Failed parsing HTTP/2 (...)"
NO_NAME = "errors resolving nowhere:8001: [field:hostname lookup error: Domain name not found]"
LOST = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Socket closed"
WRONG_HOST = (
    "connections to all backends failing; last error: UNKNOWN: ipv4:127.0.0.1:1: Custom verification check failed "
    "with error: UNAUTHENTICATED: Hostname Verification Check failed."
)
SILENT = (
    "failed to connect to all addresses; last error: UNKNOWN: connection attempt timed out before receiving SETTINGS"
)
STOPPING = (
    "[request id: <id_unknown>] Server is stopping, scheduler for model has stopped accepting new inference requests"
)
RESTRICTED = "This protocol is restricted, expecting header 'triton-grpc-protocol-key'"

CASES = [
    ("UNAVAILABLE", REFUSED, ServerUnreachable, "xray-server", Retry.UNPROCESSED),
    ("UNAVAILABLE", TLS, TLSFailed, "certificate", Retry.NEVER),
    ("UNAVAILABLE", HTTP, ServerUnreachable, "8001", Retry.NEVER),
    ("UNAVAILABLE", NO_NAME, ServerUnreachable, "check the address", Retry.UNPROCESSED),
    ("UNAVAILABLE", SILENT, ServerUnreachable, "says nothing", Retry.UNPROCESSED),
    ("UNAVAILABLE", LOST, ServerUnreachable, "TLS", Retry.UNPROCESSED),
    ("UNAVAILABLE", WRONG_HOST, TLSFailed, "certificate", Retry.NEVER),
    ("PERMISSION_DENIED", "", AuthenticationFailed, "does not let", Retry.NEVER),
    ("UNAVAILABLE", "Socket closed", ServerUnreachable, "TLS", Retry.POSSIBLY_PROCESSED),
    (
        "UNAVAILABLE",
        "Stream removed (Socket closed)",
        ServerUnreachable,
        "check that the server runs",
        Retry.POSSIBLY_PROCESSED,
    ),
    ("UNAVAILABLE", RESTRICTED, AuthenticationFailed, "ask its operator", Retry.NEVER),
    ("UNAVAILABLE", "Request timeout expired", QueueFull, "try again", Retry.UNPROCESSED),
    ("UNAVAILABLE", "Exceeds maximum queue size", QueueFull, "try again", Retry.UNPROCESSED),
    ("UNAVAILABLE", "GRPC server is shutting down and has stopped", ShuttingDown, "try again", Retry.UNPROCESSED),
    ("UNAVAILABLE", STOPPING, ShuttingDown, "try again", Retry.UNPROCESSED),
    ("UNAVAILABLE", "Server not ready", ServerNotReady, "try again", Retry.UNPROCESSED),
    ("UNAVAILABLE", "no healthy upstream", ServerUnreachable, "proxy", Retry.UNPROCESSED),
    ("CANCELLED", "GRPC server is shutting down", ShuttingDown, "try again", Retry.UNPROCESSED),
    ("CANCELLED", "CANCELLED", ServerUnreachable, "xray-server", Retry.POSSIBLY_PROCESSED),
    (
        "UNAVAILABLE",
        "Request for unknown model: 'm' version 1 is not at ready state",
        ServerNotReady,
        "try again",
        Retry.UNPROCESSED,
    ),
    (
        "UNAVAILABLE",
        "words that nobody has heard before",
        ServerUnreachable,
        "check the address",
        Retry.POSSIBLY_PROCESSED,
    ),
    ("NOT_FOUND", "Request for unknown model: 'm' is not found", ModelNotFound, "publish it", Retry.NEVER),
    (
        "NOT_FOUND",
        "Request for unknown model: 'm' has no available versions",
        ServerNotReady,
        "try again",
        Retry.UNPROCESSED,
    ),
    ("INVALID_ARGUMENT", "unexpected shape for input 'image'", RequestRejected, "refused", Retry.NEVER),
    ("INVALID_ARGUMENT", "the Tls handshake failed label is data here", RequestRejected, "refused", Retry.NEVER),
    ("RESOURCE_EXHAUSTED", "Received message larger than max", RequestRejected, "larger", Retry.NEVER),
    ("RESOURCE_EXHAUSTED", "too many requests", QueueFull, "try again", Retry.UNPROCESSED),
    ("UNAUTHENTICATED", "", AuthenticationFailed, "credentials", Retry.NEVER),
    ("UNIMPLEMENTED", "Method not found!", ProtocolMismatch, "is not Triton", Retry.NEVER),
    ("DEADLINE_EXCEEDED", "upstream request timeout", DeadlineExceeded, "upstream", Retry.NEVER),
    ("INTERNAL", "Stub process 'medclip_0_0' is not healthy.", ServerError, "Stub process", Retry.NEVER),
    ("", "", ServerError, "the server failed", Retry.NEVER),
]


@pytest.mark.parametrize(
    ("status", "words", "error", "said", "retry"), CASES, ids=[f"{c[0]} {c[1][:40]}" for c in CASES]
)
def test_the_status_and_the_words_decide(
    status: str, words: str, error: type[XrayError], said: str, retry: Retry
) -> None:
    translated, chances = translate(status, words, source="medclip at 127.0.0.1:8001")
    assert type(translated) is error
    assert chances is retry
    assert said in str(translated)
    assert str(translated).startswith("medclip at 127.0.0.1:8001: ")

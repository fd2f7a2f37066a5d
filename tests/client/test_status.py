"""The words of gRPC and Triton 2.51, as they were heard, and the error that each becomes."""

from __future__ import annotations

import pytest

from xray_client import (
    DeadlineExceeded,
    ModelNotFound,
    ProtocolMismatch,
    RequestRejected,
    ServerError,
    ServerNotReady,
    ServerUnreachable,
    XrayError,
)
from xray_client._status import translate

REFUSED = (
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
    "Failed to connect to remote host: Connection refused"
)
TLS = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Tls handshake failed (TSI_PROTOCOL)"
HTTP = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:1: Failed parsing HTTP/2 (...)"
NO_NAME = "errors resolving nowhere:8001: [field:hostname lookup error: Domain name not found]"
SILENT = (
    "failed to connect to all addresses; last error: UNKNOWN: connection attempt timed out before receiving SETTINGS"
)
RESTRICTED = "This protocol is restricted, expecting header 'triton-grpc-protocol-key'"

CASES = [
    ("UNAVAILABLE", REFUSED, ServerUnreachable, "xray-server"),
    ("UNAVAILABLE", TLS, ServerUnreachable, "certificate"),
    ("UNAVAILABLE", HTTP, ServerUnreachable, "8001"),
    ("UNAVAILABLE", NO_NAME, ServerUnreachable, "check the address"),
    ("UNAVAILABLE", SILENT, ServerUnreachable, "says nothing"),
    ("UNAVAILABLE", "Socket closed", ServerUnreachable, "TLS"),
    ("UNAVAILABLE", "Stream removed (Socket closed)", ServerUnreachable, "check that the server runs"),
    ("UNAVAILABLE", RESTRICTED, RequestRejected, "ask its operator"),
    ("UNAVAILABLE", "Request timeout expired", ServerNotReady, "try again"),
    ("UNAVAILABLE", "Exceeds maximum queue size", ServerNotReady, "try again"),
    ("UNAVAILABLE", "GRPC server is shutting down and has stopped", ServerNotReady, "try again"),
    ("CANCELLED", "GRPC server is shutting down", ServerNotReady, "try again"),
    ("UNAVAILABLE", "Request for unknown model: 'm' version 1 is not at ready state", ServerNotReady, "try again"),
    ("UNAVAILABLE", "words that nobody has heard before", ServerUnreachable, "check the address"),
    ("NOT_FOUND", "Request for unknown model: 'm' is not found", ModelNotFound, "publish it"),
    ("NOT_FOUND", "Request for unknown model: 'm' has no available versions", ServerNotReady, "try again"),
    ("INVALID_ARGUMENT", "unexpected shape for input 'image'", RequestRejected, "refused"),
    ("INVALID_ARGUMENT", "the Tls handshake failed label is data here", RequestRejected, "refused"),
    ("RESOURCE_EXHAUSTED", "Received message larger than max", RequestRejected, "larger"),
    ("RESOURCE_EXHAUSTED", "too many requests", ServerNotReady, "try again"),
    ("UNAUTHENTICATED", "", RequestRejected, "credentials"),
    ("UNIMPLEMENTED", "Method not found!", ProtocolMismatch, "not a Triton server"),
    ("DEADLINE_EXCEEDED", "upstream request timeout", DeadlineExceeded, "upstream"),
    ("INTERNAL", "Stub process 'medclip_0_0' is not healthy.", ServerError, "Stub process"),
    ("", "", ServerError, "the server failed"),
]


@pytest.mark.parametrize(("status", "words", "error", "said"), CASES, ids=[f"{c[0]} {c[1][:40]}" for c in CASES])
def test_the_status_and_the_words_decide(status: str, words: str, error: type[XrayError], said: str) -> None:
    translated = translate(status, words, source="medclip at 127.0.0.1:8001")
    assert type(translated) is error
    assert said in str(translated)
    assert str(translated).startswith("medclip at 127.0.0.1:8001: ")

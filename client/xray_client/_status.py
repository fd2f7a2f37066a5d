"""What gRPC and Triton say when things go wrong -> this package's errors.

The status alone does not tell: UNAVAILABLE means that nothing listens, that TLS failed, that a header is missing, that
the queue timed out or that the server is going away. So the words decide; they are kept where they add something.
The texts are those of Triton 2.51 and gRPC 1.68 to 1.85.
"""

from __future__ import annotations

from dataclasses import dataclass

from ._errors import (
    DeadlineExceeded,
    ModelNotFound,
    ProtocolMismatch,
    RequestRejected,
    ServerError,
    ServerNotReady,
    ServerUnreachable,
    XrayError,
)

_START_ONE = "check the address and that the server runs; `xray-server` starts one"
_CHECK_TLS = "the one side speaks TLS and the other does not, or a certificate is not accepted"
_TRY_AGAIN = "try again in a moment"
_CONNECTION = ("UNAVAILABLE", "UNKNOWN", "INTERNAL", "CANCELLED")


@dataclass(frozen=True, slots=True)
class _Rule:
    statuses: tuple[str, ...]
    words: tuple[str, ...]  # any of them, in lower case; none = whatever it says
    error: type[XrayError]
    happened: str
    remedy: str = ""
    quote: bool = True  # whether the server's own words add anything


# The first rule that fits decides.
_RULES = (
    _Rule(("UNAVAILABLE",), ("protocol is restricted",), RequestRejected,
          "the server is restricted and wants a header that was not sent", "ask its operator for access"),
    _Rule(_CONNECTION, ("shutting down",), ServerNotReady, "the server is shutting down", _TRY_AGAIN),
    _Rule(("UNAVAILABLE",), ("request timeout expired", "maximum queue size"), ServerNotReady,
          "the server is overloaded and dropped the request", _TRY_AGAIN),
    # The server knows the model: it is on its way, or it failed to load.
    _Rule(("UNAVAILABLE", "NOT_FOUND"), ("no available versions", "not at ready state"), ServerNotReady,
          "no version of the model is loaded", "try again in a moment, or see the server's log"),
    _Rule(("UNAVAILABLE",), ("unknown model",), ModelNotFound,
          "the server does not serve this model or version", "publish it, or ask for another"),
    _Rule(_CONNECTION, ("http1.x server", "failed parsing http/2"), ServerUnreachable,
          "what answers there does not speak gRPC", "use Triton's gRPC port, by default 8001"),
    _Rule(_CONNECTION, ("handshake failed", "ssl_error", "certificate verif"), ServerUnreachable,
          "no secure connection could be made", _CHECK_TLS),
    _Rule(_CONNECTION, ("dns resolution", "name resolution", "errors resolving"), ServerUnreachable,
          "no server of this name is known", "check the address"),
    _Rule(_CONNECTION, ("connection attempt timed out",), ServerUnreachable,
          "it takes connections and says nothing", "check the address, and whether the server hangs"),
    _Rule(_CONNECTION, ("connection refused",), ServerUnreachable, "nothing listens there", _START_ONE, quote=False),
    # A TLS server that hears plain text hangs up in these words too.
    _Rule(_CONNECTION, ("socket closed", "connection reset", "connection aborted", "stream removed", "broken pipe",
                        "goaway", "too_many_pings", "endpoint closing", "keepalive", "rst_stream", "recvmsg"),
          ServerUnreachable, "the connection broke",
          "check that the server runs, that this is its gRPC port, and whether it expects TLS"),
    _Rule(_CONNECTION, ("failed to connect",), ServerUnreachable, "nothing answers there", _START_ONE),
    _Rule(("UNAVAILABLE", "CANCELLED"), (), ServerUnreachable, "the server cannot be used", _START_ONE),
    _Rule(("NOT_FOUND",), (), ModelNotFound,
          "the server does not serve this model or version", "publish it, or ask for another"),
    _Rule(("DEADLINE_EXCEEDED",), (), DeadlineExceeded, "the server or a proxy before it gave up waiting", _TRY_AGAIN),
    _Rule(("RESOURCE_EXHAUSTED",), ("message larger",), RequestRejected, "the message is larger than one side allows"),
    _Rule(("RESOURCE_EXHAUSTED",), (), ServerNotReady, "the server is overloaded", _TRY_AGAIN),
    _Rule(("INVALID_ARGUMENT", "OUT_OF_RANGE", "FAILED_PRECONDITION"), (), RequestRejected,
          "the server refused the request"),
    _Rule(("UNAUTHENTICATED", "PERMISSION_DENIED"), (), RequestRejected,
          "the server wants credentials that were not sent", "ask its operator for access"),
    _Rule(("UNIMPLEMENTED",), (), ProtocolMismatch,
          "what answers there is not a Triton server", "check the address; Triton's gRPC port is by default 8001"),
    _Rule((), (), ServerError, "the server failed", "see the server's log"),
)  # fmt: skip


def translate(status: str, details: str, *, source: str) -> XrayError:
    """The error to raise for a failed call.

    Args:
        status: Name of the gRPC status, such as "UNAVAILABLE"; "" where there was none.
        details: The words that came with it.
        source: The model and server that it happened to.
    """
    words = details.lower()
    for rule in _RULES:
        if rule.statuses and status not in rule.statuses:
            continue
        if rule.words and not any(word in words for word in rule.words):
            continue
        message = f"{rule.happened}: {details.strip()}" if details.strip() and rule.quote else rule.happened
        return rule.error(message, remedy=rule.remedy, source=source)
    raise AssertionError("the last rule fits everything")

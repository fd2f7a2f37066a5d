"""Translation of gRPC's and Triton's failures into this package's errors, with the rule for sending the request again.

The status is not enough: UNAVAILABLE means that nothing listens, that TLS failed, that a header is missing, that the
queue timed out or that the server is going away. So the message decides; it is quoted where it adds something.
The messages are those of Triton 2.51 and gRPC 1.68 to 1.85.

Classifying an image twice does no harm. But an image may be what brought the server down, so a request that the server
may have been working on is sent again a few times only, and one that never reached it for as long as there is time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from xray_client._exceptions import (
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


class Retry(Enum):
    """The chances of a failed request that is sent again."""

    NEVER = "it would fail in the same way"
    UNPROCESSED = "the server did not work on it"
    POSSIBLY_PROCESSED = "the server may have been working on it when it failed"


_START_ONE = "check the address and that the server runs; `xray-server` starts one"
_CHECK_TLS = "one side speaks TLS and the other does not, or a certificate is not accepted: `xray-client doctor`"
_TRY_AGAIN = "try again in a moment"
_CONNECTION = ("UNAVAILABLE", "UNKNOWN", "INTERNAL", "CANCELLED")
_ASK = "ask its operator for access"
# No connection was ever made, whatever broke the attempts.
_NOT_SENT = ("failed to connect", "connections to all backends failing")


@dataclass(frozen=True, slots=True)
class _Rule:
    statuses: tuple[str, ...]
    words: tuple[str, ...]  # any of them, in lower case; none = any message
    error: type[XrayError]
    happened: str
    remedy: str
    quote: bool = True  # the server's own message adds something
    retry: Retry = Retry.NEVER


# The first rule that fits decides.
_RULES = (
    _Rule(("UNAVAILABLE",), ("protocol is restricted",), AuthenticationFailed,
          "the server is restricted and wants a header that was not sent", _ASK),
    _Rule(_CONNECTION, ("shutting down", "server is stopping", "stopped accepting"), ShuttingDown,
          "the server is shutting down", _TRY_AGAIN, retry=Retry.UNPROCESSED),
    # Messages of Envoy and of proxies built on it.
    _Rule(("UNAVAILABLE",), ("no healthy upstream", "delayed connect error", "reset reason: connection failure",
                             "reset reason: remote connection failure"), ServerUnreachable,
          "the proxy in front of the server reaches none", "check the servers behind it", retry=Retry.UNPROCESSED),
    _Rule(("UNAVAILABLE",), ("request timeout expired", "maximum queue size"), QueueFull,
          "the server is overloaded and dropped the request", _TRY_AGAIN, retry=Retry.UNPROCESSED),
    _Rule(("UNAVAILABLE",), ("server not ready",), ServerNotReady,
          "the server is starting or stopping", _TRY_AGAIN, retry=Retry.UNPROCESSED),
    # The server knows the model, which is loading or failed to load.
    _Rule(("UNAVAILABLE", "NOT_FOUND"), ("no available versions", "not at ready state"), ServerNotReady,
          "no version of the model is loaded", "try again in a moment, or see the server's log",
          retry=Retry.UNPROCESSED),
    _Rule(("UNAVAILABLE",), ("unknown model",), ModelNotFound,
          "the server does not serve this model or version", "publish it, or ask for another"),
    _Rule(_CONNECTION, ("http1.x server", "failed parsing http/2"), ServerUnreachable,
          "the server at this address does not speak gRPC", "use Triton's gRPC port, by default 8001"),
    _Rule(_CONNECTION, ("handshake failed", "ssl_error", "certificate verif", "hostname verification"), TLSFailed,
          "no secure connection could be made", _CHECK_TLS),
    _Rule(_CONNECTION, ("dns resolution", "name resolution", "errors resolving"), ServerUnreachable,
          "no server of this name is known", "check the address", retry=Retry.UNPROCESSED),
    _Rule(_CONNECTION, ("connection attempt timed out",), ServerUnreachable,
          "the server accepts the connection and says nothing", "check the address, and whether the server hangs",
          retry=Retry.UNPROCESSED),
    _Rule(_CONNECTION, ("connection refused",), ServerUnreachable, "nothing listens there", _START_ONE, quote=False,
          retry=Retry.UNPROCESSED),
    # A TLS server that receives plain text closes the connection with these messages too.
    _Rule(_CONNECTION, ("socket closed", "connection reset", "connection aborted", "stream removed", "broken pipe",
                        "goaway", "too_many_pings", "endpoint closing", "keepalive", "rst_stream", "recvmsg"),
          ServerUnreachable, "the connection broke",
          "check that the server runs, that this is its gRPC port, and whether it expects TLS",
          retry=Retry.POSSIBLY_PROCESSED),
    _Rule(_CONNECTION, _NOT_SENT, ServerUnreachable, "nothing answers there", _START_ONE, retry=Retry.UNPROCESSED),
    _Rule(("UNAVAILABLE",), (), ServerUnreachable, "the server cannot be used", _START_ONE,
          retry=Retry.POSSIBLY_PROCESSED),
    # A server that stops cancels what it has not finished, with no other message (measured, 2.51). Calls that
    # this client cancels do not come here.
    _Rule(("CANCELLED",), (), ServerUnreachable, "the server cancelled the request", _START_ONE,
          retry=Retry.POSSIBLY_PROCESSED),
    _Rule(("NOT_FOUND",), (), ModelNotFound,
          "the server does not serve this model or version", "publish it, or ask for another"),
    _Rule(("DEADLINE_EXCEEDED",), (), DeadlineExceeded, "the server or a proxy in front of it gave up waiting",
          _TRY_AGAIN),
    _Rule(("RESOURCE_EXHAUSTED",), ("message larger",), RequestRejected, "the message is larger than one side allows",
          "ask for fewer outputs, or raise the limit of the proxy in between"),
    _Rule(("RESOURCE_EXHAUSTED",), (), QueueFull, "the server is overloaded", _TRY_AGAIN, retry=Retry.UNPROCESSED),
    _Rule(("INVALID_ARGUMENT", "OUT_OF_RANGE", "FAILED_PRECONDITION"), (), RequestRejected,
          "the server refused the request", "compare the model's inputs by `info` with what was sent"),
    _Rule(("UNAUTHENTICATED",), (), AuthenticationFailed, "the server wants credentials that were not sent", _ASK),
    _Rule(("PERMISSION_DENIED",), (), AuthenticationFailed, "the server does not let this client in", _ASK),
    _Rule(("UNIMPLEMENTED",), (), ProtocolMismatch,
          "the server at this address is not Triton", "check the address; Triton's gRPC port is by default 8001"),
    _Rule((), (), ServerError, "the server failed", "see the server's log"),
)  # fmt: skip


def translate(status: str, details: str, *, source: str) -> tuple[XrayError, Retry]:
    """Return the error to raise for a failed call, and the chances of sending the request again.

    Args:
        status: Name of the gRPC status, such as "UNAVAILABLE"; "" where there was none.
        details: The message that came with it.
        source: The model and server that it happened to.
    """
    words = details.lower()
    for rule in _RULES:
        if rule.statuses and status not in rule.statuses:
            continue
        if rule.words and not any(word in words for word in rule.words):
            continue
        message = f"{rule.happened}: {details.strip()}" if details.strip() and rule.quote else rule.happened
        unsent = rule.retry is Retry.POSSIBLY_PROCESSED and any(word in words for word in _NOT_SENT)
        return rule.error(message, remedy=rule.remedy, source=source), Retry.UNPROCESSED if unsent else rule.retry
    raise AssertionError("the last rule fits everything")

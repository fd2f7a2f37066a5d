"""The errors of this package.

    XrayError
    +-- ImageError                  the file, not the server; the other files go on
    |   +-- ImageUnreadable         empty, truncated, a folder, or its codec failed
    |   |   +-- ImageUnavailable    the operating system did not give it: missing, no permission, busy, not in time
    |   +-- ImageUnsupported        a format or a kind of image that is not a single grey radiograph
    |   +-- ImageTooLarge           more pixels or bytes than the cap, judged from the header
    +-- ServerError
    |   +-- ServerUnreachable       nothing listens there, or the connection broke
    |   |   +-- TLSFailed           the two sides do not agree on TLS, or a certificate is not accepted
    |   +-- AuthenticationFailed    a token, a header or another proof of who asks is missing or refused
    |   +-- ServerNotReady          it listens, but is starting or its model is not loaded
    |   |   +-- QueueFull           it dropped the request: too many are waiting, or this one waited too long
    |   |   +-- ShuttingDown        it finishes what it has and takes nothing new
    |   +-- ModelNotFound           the server does not have this model or version
    |   +-- RequestRejected         the server refused the input
    |   +-- DeadlineExceeded        no answer within the deadline
    +-- ProtocolMismatch            it answered, but not what the contract says
    |   +-- PreprocessingMismatch   the served model wants its images prepared in another way
    |   +-- OutputMismatch          an output is missing, or of the wrong shape or type
    |   +-- NotFinite               an output holds NaN or infinity
    |   +-- NotNormalised           the probabilities are not from 0 to 1 with the sum 1
    +-- OutputRefused               a file that is to be written is an input, or was not written by this project

Each error says what happened, to which file or server, and what to do next (`remedy`). One that comes from a call of
the client also knows the call's file, model, request id and number of attempts. The cause is chained.
"""

# ruff: noqa: N818 - each class is named for what happened
from __future__ import annotations

from typing import Any


class XrayError(Exception):
    """Base of all errors of this package.

    Attributes:
        message: What happened, in one sentence.
        remedy: What the caller can do about it; may be empty.
        source: The file, server or model it happened to; may be empty.
        file: The file that was to be classified; None for an image from memory, or where there was none.
        model: The model that was asked; empty outside of a client's call.
        request_id: The request's id, as the server's log has it; empty outside of a client's call.
        attempts: How often the request was sent; 0 where it never was.
    """

    def __init__(self, message: str, *, remedy: str = "", source: str = "") -> None:
        self.message = message
        self.remedy = remedy
        self.source = source
        self.file: str | None = None
        self.model = ""
        self.request_id = ""
        self.attempts = 0
        super().__init__(message, remedy, source)

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments and attributes filled in later: without this an error cannot cross a process pool.
        return _rebuild, (type(self), self.message, self.remedy, self.source), dict(self.__dict__)

    def __str__(self) -> str:
        text = f"{self.source}: {self.message}" if self.source else self.message
        if self.attempts > 1:
            text += f", after {self.attempts} attempts"
        return f"{text} ({self.remedy})" if self.remedy else text


def _rebuild(cls: type[XrayError], message: str, remedy: str, source: str) -> XrayError:
    return cls(message, remedy=remedy, source=source)


class ImageError(XrayError):
    """This image cannot be classified; others can."""


class ImageUnreadable(ImageError):
    """The file is missing, empty, truncated or damaged: check it, or export it again."""


class ImageUnavailable(ImageUnreadable):
    """The operating system did not give the file; nothing is known of its content, and another try may succeed."""


class ImageUnsupported(ImageError):
    """The file is not a single grey radiograph in a format that is understood: convert it or leave it out."""


class ImageTooLarge(ImageError):
    """The header announces more pixels, or the file more bytes, than the cap: resize it first."""


class ServerError(XrayError):
    """The server could not answer."""


class ServerUnreachable(ServerError):
    """No connection, or it broke: check that the server runs and that the address is right."""


class TLSFailed(ServerUnreachable):
    """No secure connection: check the authority, the names and the dates of the certificates on both sides."""


class AuthenticationFailed(ServerError):
    """The server wants a token, a header or rights that this client does not have: ask its operator."""


class ServerNotReady(ServerError):
    """The server is starting, draining or shedding load: try again in a moment."""


class QueueFull(ServerNotReady):
    """The server sheds load: send less at a time, or try again in a moment."""


class ShuttingDown(ServerNotReady):
    """The server is being stopped: try again in a moment, or ask another one."""


class ModelNotFound(ServerError):
    """The server does not serve this model or version: publish it, or ask for another."""


class RequestRejected(ServerError):
    """The server refused the input: it names the reason."""


class DeadlineExceeded(ServerError):
    """No answer within the deadline: the server is overloaded or the network is slow."""


class ProtocolMismatch(XrayError):
    """The answer breaks the contract, so nothing in it can be trusted."""


class PreprocessingMismatch(ProtocolMismatch):
    """The image was prepared in another way than the served model was trained with."""


class OutputMismatch(ProtocolMismatch):
    """An output is missing or of the wrong shape or type: the served model is not one of this project."""


class NotFinite(ProtocolMismatch):
    """An output holds NaN or infinity: the engine is broken, often by a loss of precision when it was built."""


class NotNormalised(ProtocolMismatch):
    """The probabilities are not from 0 to 1 with the sum 1: the served model is not one of this project."""


class OutputRefused(XrayError):
    """Writing there would destroy something: name another file, or remove that one first."""

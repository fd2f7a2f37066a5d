"""One request, until it is answered or there is no point in trying: who asks, the clock, and when to send it again."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from xray_client._config import Settings
from xray_client._exceptions import (
    AuthenticationFailed,
    DeadlineExceeded,
    ModelNotFound,
    QueueFull,
    ServerNotReady,
    ServerUnreachable,
    XrayError,
)

from .balancer import Servers
from .deadline import Deadline
from .effects import Call, CallFailed, Pause, Steps, Work
from .grpc_errors import Again, translate
from .messages import waits_at_most

# Seconds: enough for another server to be chosen; little enough to notice one that is back.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
# A server that has never answered is more likely at another address than on its way.
RETRIES_BEFORE_THE_FIRST_ANSWER = 2
# A request that may have been what brought the server down is not sent again until none is left.
RETRIES_OF_A_TOUCHED_REQUEST = 2
# Attempts that share the time behind a name, which may stand for one server or for several.
CHANCES_BEHIND_A_NAME = 2
# A server that says so is left out for a while; one that is starting does not know its models yet.
OF_NO_USE_NOW = (ServerUnreachable, ServerNotReady, ModelNotFound)
# Seconds after which the token is asked for again.
TOKEN_LIFETIME = 60.0

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")
_TOKEN = re.compile(r"[!-~]+")


@dataclass(slots=True)
class Errand:
    """One call of the client: what all of its requests share.

    Nothing in it tells of the patient: the ids are random, and the file stays here.
    """

    deadline: Deadline
    traceparent: str | None = None
    patient: bool = True  # whether to send a request again that failed for a passing reason
    request_id: str = field(default_factory=lambda: os.urandom(8).hex())
    attempts: int = 0  # of the last request
    _trace: tuple[str, str] = field(init=False)

    def __post_init__(self) -> None:
        if self.traceparent is None:
            self._trace = os.urandom(16).hex(), "00"
            return
        match = _TRACEPARENT.fullmatch(self.traceparent)
        if match is None:
            raise ValueError(f"traceparent {self.traceparent!r} is not one of W3C Trace Context, version 00")
        self._trace = match[1], match[2]

    def span(self) -> str:
        """The trace context of the next request (https://www.w3.org/TR/trace-context/)."""
        trace_id, flags = self._trace
        return f"00-{trace_id}-{os.urandom(8).hex()}-{flags}"


class Requests:
    """Sends requests of one client, with its headers and its token.

    Args:
        settings: The client's.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._headers = tuple(settings.headers.items())
        self._token = _Token(settings.token, settings.source) if settings.token is not None else None
        self._servers = Servers(len(settings.endpoints.targets))
        self._answered = False

    def send(self, method: str, request: Any, errand: Errand) -> Steps[Any]:
        """The response to a request, sent as often, and to as many servers, as makes sense before the deadline.

        Every request of this client may be answered twice without harm: none changes anything.
        """
        deadline, tried, renewed = errand.deadline, _Tried(), False
        errand.attempts = 0
        while True:
            metadata = yield from self._metadata(errand)
            timeout = self._seconds_for(deadline.left(), errand, tried)
            if method == "ModelInfer":
                waits_at_most(request, timeout)
            server = self._servers.choose(tried.servers)
            errand.attempts += 1
            tried.servers.append(server)
            attempt = Deadline(timeout)
            try:
                response = yield Call(method, request, timeout, metadata, server)
            except CallFailed as failed:
                error, again = self._judge(failed, deadline, attempt, server, tried)
                error.attempts = errand.attempts
                if failed.status == "UNAUTHENTICATED" and self._token is not None and not renewed:
                    renewed = True
                    self._token.forget()
                    continue
                tried.touched += again is Again.PERHAPS_TOUCHED
                tried.last = error
                elsewhere = self._servers.others(tried.servers) > 0 and not isinstance(error, QueueFull)
                pause = 0.0 if elsewhere else backoff(errand.attempts)
                worthwhile = self._worthwhile(error, again, errand, tried)
                if not worthwhile or deadline.within(pause):
                    if worthwhile:  # waited for in vain: the next calls do not wait as long
                        self._answered = False
                    raise error from failed.__cause__
                if pause:
                    yield Pause(pause)
            else:
                self._servers.answered(server)
                self._answered = True
                return response

    def _metadata(self, errand: Errand) -> Steps[tuple[tuple[str, str], ...]]:
        ours = (("x-request-id", errand.request_id), ("traceparent", errand.span()), *self._headers)
        if self._token is None:
            return ours
        token = yield from self._token.current(errand.deadline)
        return (*ours, ("authorization", f"Bearer {token}"))

    def _seconds_for(self, left: float, errand: Errand, tried: _Tried) -> float:
        """How long the next attempt may take: all that is left, or so that another server gets its turn."""
        limit = self._settings.attempt_timeout
        if limit is not None:
            return min(limit, left)
        chances = self._servers.others(tried.servers)
        if self._settings.endpoints.by_name and errand.patient:
            chances = CHANCES_BEHIND_A_NAME - len(tried.servers)
        if self._settings.retries is not None:
            chances = min(chances, 1 + self._settings.retries - len(tried.servers))
        chances = min(chances, 1 + RETRIES_OF_A_TOUCHED_REQUEST - tried.touched)
        return left / max(1, chances)

    def _worthwhile(self, error: XrayError, again: Again, errand: Errand, tried: _Tried) -> bool:
        elsewhere = self._servers.others(tried.servers) > 0
        if elsewhere and isinstance(error, (ServerUnreachable, ModelNotFound)) and again is not Again.PERHAPS_TOUCHED:
            return True  # no model has seen it
        if again is Again.NEVER or tried.touched > RETRIES_OF_A_TOUCHED_REQUEST:
            return False
        if not errand.patient:  # each server is asked once
            return elsewhere
        if self._settings.retries is not None:
            return errand.attempts <= self._settings.retries
        return self._answered or elsewhere or errand.attempts <= RETRIES_BEFORE_THE_FIRST_ANSWER

    def _judge(
        self, failed: CallFailed, deadline: Deadline, attempt: Deadline, server: int, tried: _Tried
    ) -> tuple[XrayError, Again]:
        """The error to raise, and whether it may be mended by sending again; the server's loss is noted."""
        source = self._settings.source
        # Ours, and not that of a proxy, which says so in other words and at another time.
        ours = failed.details == "Deadline Exceeded" or attempt.within(0.02)
        if failed.status != "DEADLINE_EXCEEDED" or not ours:
            error, again = translate(failed.status, failed.details, source=source)
            if isinstance(error, OF_NO_USE_NOW) and not isinstance(error, QueueFull):
                self._servers.lost(server)
            else:
                self._servers.answered(server)
            return error, again
        self._servers.lost(server, after=attempt.seconds)
        if not deadline.within(0.02):
            error = DeadlineExceeded(
                f"no answer within {attempt.seconds:.3g} s from {self._settings.endpoints.targets[server]}",
                remedy="see whether that server hangs, or allow an attempt more time with `attempt_timeout`",
                source=source,
            )
            return error, Again.PERHAPS_TOUCHED
        error = deadline.exceeded(source)
        if tried.last is not None:
            error.message += f"; before that, {tried.last.message}"
        return error, Again.NEVER


@dataclass(slots=True)
class _Tried:
    """What became of one request so far."""

    servers: list[int] = field(default_factory=list)
    touched: int = 0  # how often a server may have been working on it
    last: XrayError | None = None


def backoff(attempt: int) -> float:
    """Seconds to wait after this attempt, 1 being the first: doubled each time, and never the same for two clients."""
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt - 1, 16))
    return longest * random.uniform(0.5, 1)


class _Token:
    """What the caller's function gives, kept for `TOKEN_LIFETIME`. Never shown: not in a repr, nor in an error."""

    def __init__(self, ask: Callable[[], str], source: str) -> None:
        self._ask = ask
        self._source = source
        self._value: str | None = None
        self._asked_at = 0.0

    def forget(self) -> None:
        self._value = None

    def current(self, deadline: Deadline) -> Steps[str]:
        value = self._value
        if value is not None and time.monotonic() - self._asked_at < TOKEN_LIFETIME:
            return value
        late = DeadlineExceeded(
            f"no token within {deadline.seconds:g} s", remedy="see where the token comes from", source=self._source
        )
        try:
            value = yield Work(self._ask, deadline, lambda: late)
        except XrayError:
            raise
        except Exception as err:
            raise AuthenticationFailed(
                f"the token could not be had ({type(err).__name__})", remedy="see the cause", source=self._source
            ) from err
        if not isinstance(value, str) or not _TOKEN.fullmatch(value.strip()):
            raise AuthenticationFailed(
                "the token is not one word of printable ASCII",
                remedy="see where the token comes from",
                source=self._source,
            )
        self._value, self._asked_at = value.strip(), time.monotonic()
        return self._value

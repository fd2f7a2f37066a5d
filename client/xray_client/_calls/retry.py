"""Retries and failover: one request is sent until it is answered, or until trying again is pointless."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field
from typing import Any

from xray_client._config import Settings
from xray_client._exceptions import (
    DeadlineExceeded,
    ModelNotFound,
    QueueFull,
    ServerNotReady,
    ServerUnreachable,
    XrayError,
)

from .balancer import Balancer
from .context import RequestContext
from .deadline import Deadline
from .effects import Call, CallFailed, Pause, Steps
from .grpc_errors import Retry, translate
from .messages import set_queue_timeout
from .token import TokenCache

# Seconds: enough for another server to be chosen; little enough to notice one that is back.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
# A server that has never answered is more likely at another address than on its way.
RETRIES_BEFORE_THE_FIRST_ANSWER = 2
# A request that may have been what brought the server down is not sent again until none is left.
RETRIES_OF_A_POSSIBLY_PROCESSED_REQUEST = 2
# Attempts that share the time behind a name, which may stand for one server or for several.
ATTEMPTS_BEHIND_A_NAME = 2
# Errors that start the cooldown of a server; one that is starting does not know its models yet.
UNUSABLE_NOW = (ServerUnreachable, ServerNotReady, ModelNotFound)

# Never the server's own message, which is not ours to vouch for: no path, header or token may reach the log.
_log = logging.getLogger("xray_client")


@dataclass(slots=True)
class _Tried:
    """The attempts of one request so far."""

    servers: list[int] = field(default_factory=list)
    possibly_processed: int = 0  # how often a server may have been working on it
    last: XrayError | None = None


class RequestSender:
    """Sends the requests of one client, with its headers and its token.

    Args:
        settings: The client's configuration.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._headers = tuple(settings.headers.items())
        self._token = TokenCache(settings.token, settings.source) if settings.token is not None else None
        self._addresses = settings.endpoints.targets
        self._balancer = Balancer(self._addresses)
        self._answered = False

    def send(self, method: str, request: Any, context: RequestContext) -> Steps[Any]:
        """Return the response to a request, sent as often, and to as many servers, as makes sense before the deadline.

        Every request of this client may be answered twice without harm: none changes anything.
        """
        deadline, tried, token_renewed = context.deadline, _Tried(), False
        context.attempts = 0
        while True:
            metadata = yield from self._metadata(context)
            timeout = self._attempt_seconds(deadline.left(), context, tried)
            if method == "ModelInfer":
                set_queue_timeout(request, timeout)
            server = self._balancer.choose(tried.servers)
            if tried.servers and server != tried.servers[-1]:
                _log.info(
                    "request %s: failover from %s to %s",
                    context.request_id, self._addresses[tried.servers[-1]], self._addresses[server],
                )  # fmt: skip
            context.attempts += 1
            tried.servers.append(server)
            attempt = Deadline(timeout)
            try:
                response = yield Call(method, request, timeout, metadata, server)
            except CallFailed as failed:
                error, retry = self._classify_error(failed, deadline, attempt, server, tried)
                error.attempts = context.attempts
                if failed.status == "UNAUTHENTICATED" and self._token is not None and not token_renewed:
                    token_renewed = True
                    self._token.forget()
                    self._log_failure(method, context, server, failed, error, "sent again with a new token")
                    continue
                tried.possibly_processed += retry is Retry.POSSIBLY_PROCESSED
                tried.last = error
                elsewhere = self._balancer.others(tried.servers) > 0 and not isinstance(error, QueueFull)
                pause = 0.0 if elsewhere else backoff(context.attempts)
                worthwhile = self._worthwhile(error, retry, context, tried)
                if not worthwhile or deadline.within(pause):
                    if worthwhile:  # waited for in vain: the next calls do not wait as long
                        self._answered = False
                    self._log_failure(method, context, server, failed, error, "not sent again", level=logging.DEBUG)
                    raise error from failed.__cause__
                self._log_failure(method, context, server, failed, error, f"sent again in {pause:.2f} s")
                if pause:
                    yield Pause(pause)
            else:
                self._balancer.answered(server)
                self._answered = True
                return response

    def _log_failure(
        self,
        method: str,
        context: RequestContext,
        server: int,
        failed: CallFailed,
        error: XrayError,
        then: str,
        level: int = logging.INFO,
    ) -> None:
        _log.log(
            level,
            "request %s: attempt %d, %s to %s, failed with %s (%s); %s",
            context.request_id, context.attempts, method, self._addresses[server], failed.status or "no status",
            type(error).__name__, then,
        )  # fmt: skip

    def _metadata(self, context: RequestContext) -> Steps[tuple[tuple[str, str], ...]]:
        headers = (("x-request-id", context.request_id), ("traceparent", context.span()), *self._headers)
        if self._token is None:
            return headers
        token = yield from self._token.current(context.deadline)
        return (*headers, ("authorization", f"Bearer {token}"))

    def _attempt_seconds(self, left: float, context: RequestContext, tried: _Tried) -> float:
        """Seconds that the next attempt may take: all that is left, or a share so that another server gets its turn."""
        limit = self._settings.attempt_timeout
        if limit is not None:
            return min(limit, left)
        attempts = self._balancer.others(tried.servers)
        if self._settings.endpoints.by_name and context.retries:
            attempts = ATTEMPTS_BEHIND_A_NAME - len(tried.servers)
        if self._settings.retries is not None:
            attempts = min(attempts, 1 + self._settings.retries - len(tried.servers))
        attempts = min(attempts, 1 + RETRIES_OF_A_POSSIBLY_PROCESSED_REQUEST - tried.possibly_processed)
        return left / max(1, attempts)

    def _worthwhile(self, error: XrayError, retry: Retry, context: RequestContext, tried: _Tried) -> bool:
        elsewhere = self._balancer.others(tried.servers) > 0
        unprocessed = retry is not Retry.POSSIBLY_PROCESSED
        if elsewhere and isinstance(error, (ServerUnreachable, ModelNotFound)) and unprocessed:
            return True  # no model has seen it
        if retry is Retry.NEVER or tried.possibly_processed > RETRIES_OF_A_POSSIBLY_PROCESSED_REQUEST:
            return False
        if not context.retries:  # each server is asked once
            return elsewhere
        if self._settings.retries is not None:
            return context.attempts <= self._settings.retries
        return self._answered or elsewhere or context.attempts <= RETRIES_BEFORE_THE_FIRST_ANSWER

    def _classify_error(
        self, failed: CallFailed, deadline: Deadline, attempt: Deadline, server: int, tried: _Tried
    ) -> tuple[XrayError, Retry]:
        """Return the error to raise and the chances of sending again; update the server's health."""
        source = self._settings.source
        # Our own deadline, not a proxy's, which has another message and passes at another time.
        own_deadline = failed.details == "Deadline Exceeded" or attempt.within(0.02)
        if failed.status != "DEADLINE_EXCEEDED" or not own_deadline:
            error, retry = translate(failed.status, failed.details, source=source)
            if isinstance(error, UNUSABLE_NOW) and not isinstance(error, QueueFull):
                self._balancer.failed(server)
            else:
                self._balancer.answered(server)
            return error, retry
        self._balancer.failed(server, after=attempt.seconds)
        if not deadline.within(0.02):
            error = DeadlineExceeded(
                f"no answer within {attempt.seconds:.3g} s from {self._addresses[server]}",
                remedy="see whether that server hangs, or allow an attempt more time with `attempt_timeout`",
                source=source,
            )
            return error, Retry.POSSIBLY_PROCESSED
        error = deadline.exceeded(source)
        if tried.last is not None:
            error.message += f"; before that, {tried.last.message}"
        return error, Retry.NEVER


def backoff(attempt: int) -> float:
    """Seconds to wait after this attempt, 1 being the first: doubled each time, with jitter of up to a half."""
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt - 1, 16))
    return longest * random.uniform(0.5, 1)

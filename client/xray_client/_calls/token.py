"""The bearer token: fetched when it is needed, kept for a minute, shown nowhere."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from xray_client._exceptions import AuthenticationFailed, DeadlineExceeded, XrayError

from .deadline import Deadline
from .effects import Steps, Work

# Seconds after which the token is fetched again.
TOKEN_LIFETIME = 60.0

_TOKEN = re.compile(r"[!-~]+")


class TokenCache:
    """The token that the caller's function returns, kept for `TOKEN_LIFETIME`. In no repr and in no error.

    Args:
        fetch: The caller's function.
        source: The model and its server, as errors name them.
    """

    def __init__(self, fetch: Callable[[], str], source: str) -> None:
        self._fetch = fetch
        self._source = source
        self._value: str | None = None
        self._fetched_at = 0.0

    def forget(self) -> None:
        """Fetch the token anew for the next request."""
        self._value = None

    def current(self, deadline: Deadline) -> Steps[str]:
        """Return the token, fetched if it is missing or too old.

        Raises:
            AuthenticationFailed: The function failed, or returned something else than a token.
            DeadlineExceeded: It did not return in time.
        """
        value = self._value
        if value is not None and time.monotonic() - self._fetched_at < TOKEN_LIFETIME:
            return value
        late = DeadlineExceeded(
            f"no token within {deadline.seconds:g} s", remedy="check the source of the token", source=self._source
        )
        try:
            value = yield Work(self._fetch, deadline, lambda: late)
        except XrayError:
            raise
        except Exception as err:
            raise AuthenticationFailed(
                f"no token could be fetched ({type(err).__name__})", remedy="see the cause", source=self._source
            ) from err
        if not isinstance(value, str) or not _TOKEN.fullmatch(value.strip()):
            raise AuthenticationFailed(
                "the token is not one word of printable ASCII",
                remedy="check the source of the token",
                source=self._source,
            )
        self._value, self._fetched_at = value.strip(), time.monotonic()
        return self._value

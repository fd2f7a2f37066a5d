"""Retries, shares of the timeout and failover, against servers in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.virtual_time import VirtualServers, answers, fails, hangs
from xray_client import DeadlineExceeded, QueueFull, ServerUnreachable, XrayError
from xray_client._calls.context import RequestContext
from xray_client._calls.deadline import Deadline
from xray_client._calls.retry import RequestSender
from xray_client._config import Settings

REFUSED = fails("UNAVAILABLE", "Connection refused")
LOST = fails("UNAVAILABLE", "Socket closed", after=0.1)
SHED = fails("UNAVAILABLE", "Exceeds maximum queue size")


class Client:
    """A sender of requests, and the servers that it sends to."""

    def __init__(self, servers: VirtualServers, url: str = "", **options: Any) -> None:
        url = url or ",".join(f"10.0.0.{number}:1" for number in range(1, len(servers.behaviours) + 1))
        settings = Settings(url, "medclip", "", timeout=options.pop("timeout", 10.0), **options)
        self._servers, self._settings, self._sender = servers, settings, RequestSender(settings)

    def ask(self, *, retries: bool = True) -> str:
        context = RequestContext(Deadline(self._settings.timeout), retries=retries)
        answer: str = self._servers.run(self._sender.send("ServerReady", None, context))
        return answer

    def error(self, **options: bool) -> XrayError:
        with pytest.raises(XrayError) as caught:
            self.ask(**options)
        return caught.value


class TestTheTimeout:
    @pytest.mark.parametrize("behaviour", [hangs, REFUSED, LOST, SHED], ids=["hangs", "refused", "lost", "shed"])
    @pytest.mark.parametrize("count", [1, 2, 3])
    @pytest.mark.parametrize("attempt_timeout", [None, 1.5])
    def test_is_never_exceeded(
        self, monkeypatch: pytest.MonkeyPatch, behaviour: Any, count: int, attempt_timeout: float | None
    ) -> None:
        servers = VirtualServers(monkeypatch, *[behaviour] * count)
        client = Client(servers, attempt_timeout=attempt_timeout)
        for _ in range(5):
            before = servers.now
            client.error()
            assert servers.now - before <= 10.0 + 1e-6

    def test_is_all_for_one_attempt_of_a_single_server_that_hangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        servers = VirtualServers(monkeypatch, hangs)
        error = Client(servers).error()
        assert isinstance(error, DeadlineExceeded)
        assert (error.attempts, error.message) == (1, "no answer within 10 s")
        assert servers.now == pytest.approx(1010)

    def test_is_shared_by_the_servers_that_are_still_to_be_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        servers = VirtualServers(monkeypatch, hangs, hangs)
        error = Client(servers, timeout=5.0).error()
        assert isinstance(error, DeadlineExceeded)
        assert [call.timeout for call in servers.calls] == pytest.approx([2.5, 2.5])
        assert error.message.startswith("no answer within 5 s; before that, no answer within 2.5 s from 10.0.0.")
        assert "after 2 attempts" in str(error)

    def test_is_shared_by_three_at_most(self, monkeypatch: pytest.MonkeyPatch) -> None:
        servers = VirtualServers(monkeypatch, *[hangs] * 5)
        assert Client(servers, timeout=9.0).error().attempts == 3
        assert [call.timeout for call in servers.calls] == pytest.approx([3, 3, 3])

    def test_is_halved_behind_a_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        servers = VirtualServers(monkeypatch, hangs)
        Client(servers, "dns:///triton.lan:8001").error()
        assert [call.timeout for call in servers.calls] == pytest.approx([5, 5], rel=0.02)

    def test_is_all_for_one_attempt_where_nothing_is_sent_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        servers = VirtualServers(monkeypatch, hangs, hangs)
        Client(servers, retries=0).error()
        assert [call.timeout for call in servers.calls] == [10]


class TestAnAttempt:
    def test_that_has_its_own_timeout_is_repeated_twice_at_most(self, monkeypatch: pytest.MonkeyPatch) -> None:
        servers = VirtualServers(monkeypatch, hangs)
        error = Client(servers, timeout=30.0, attempt_timeout=1.0).error()
        assert error.message == "no answer within 1 s from 10.0.0.1:1"
        assert "attempt_timeout" in error.remedy
        assert [call.timeout for call in servers.calls] == [1, 1, 1]

    def test_that_was_never_answered_is_repeated_twice_and_else_until_the_timeout(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        servers = VirtualServers(monkeypatch, SHED)
        client = Client(servers)
        assert client.error().attempts == 3
        assert servers.now < 1000.2
        servers.behaviours = [answers]
        client.ask()
        servers.behaviours = [SHED]
        error = client.error()
        assert isinstance(error, QueueFull)
        assert error.attempts > 5
        assert 0 < 10 - sum(servers.pauses[2:]) < 2.0

    def test_that_was_waited_for_in_vain_is_not_waited_for_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        servers = VirtualServers(monkeypatch, answers)
        client = Client(servers)
        client.ask()
        servers.behaviours = [REFUSED]
        assert client.error().attempts > 5
        assert client.error().attempts == 3

    def test_that_ends_with_the_timeout_tells_of_the_failure_before_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        servers = VirtualServers(monkeypatch, answers)
        client = Client(servers)
        client.ask()
        behaviours = iter([SHED, hangs])
        servers.behaviours = [lambda servers, call: next(behaviours)(servers, call)]
        error = client.error()
        assert isinstance(error, DeadlineExceeded)
        assert error.message.startswith("no answer within 10 s; before that, the server is overloaded")
        assert error.attempts == 2


class TestFailover:
    def test_costs_one_attempt_and_then_the_server_that_hangs_is_left_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        servers = VirtualServers(monkeypatch, hangs, answers)
        client = Client(servers, timeout=8.0)
        assert [client.ask() for _ in range(9)] == ["answer of 1"] * 9
        assert servers.asked.count(0) == 1
        assert servers.now == pytest.approx(1004)
        servers.now += 60
        assert [client.ask() for _ in range(9)] == ["answer of 1"] * 9
        assert servers.asked.count(0) == 2

    def test_goes_to_the_other_server_without_a_pause(self, monkeypatch: pytest.MonkeyPatch) -> None:
        servers = VirtualServers(monkeypatch, REFUSED, answers)
        client = Client(servers, retries=0)
        assert [client.ask() for _ in range(9)] == ["answer of 1"] * 9
        assert not servers.pauses

    def test_to_a_server_that_sheds_load_is_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        servers = VirtualServers(monkeypatch, REFUSED, answers)
        client = Client(servers)
        client.ask()
        servers.behaviours[1] = SHED
        error = client.error()
        assert isinstance(error, QueueFull | ServerUnreachable)
        assert error.attempts > 5

    def test_comes_to_an_end_where_all_are_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        servers = VirtualServers(monkeypatch, REFUSED, REFUSED)
        error = Client(servers).error(retries=False)
        assert isinstance(error, ServerUnreachable)
        assert sorted(servers.asked) == [0, 1]
        assert not servers.pauses

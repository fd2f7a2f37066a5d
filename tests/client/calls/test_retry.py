"""The headers and parameters of a request, and when it is sent again."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from tests.client.cli.test_classify import save
from tests.helpers.gates import Gate
from tests.helpers.radiographs import grey
from xray_client import (
    TLS,
    AuthenticationFailed,
    DeadlineExceeded,
    Endpoints,
    Failure,
    ImageUnreadable,
    QueueFull,
    RequestRejected,
    ServerUnreachable,
    TLSFailed,
    XrayClient,
    XrayError,
)
from xray_client._calls import token as _token
from xray_client._calls.context import RequestContext
from xray_client._calls.deadline import Deadline
from xray_client._calls.retry import backoff
from xray_client.testing import FakeServer

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class TestARequestIsSentRetry:
    @pytest.mark.parametrize("words", ["Socket closed", "Exceeds maximum queue size", "GRPC server is shutting down"])
    def test_where_it_may_succeed(self, fake: FakeServer, client: XrayClient, words: str) -> None:
        fake.fail("UNAVAILABLE", words, times=2)
        answer = client.classify(grey(9))
        assert answer.decision == 0
        assert answer.timing.attempts == len(fake.requests) == 3
        assert len({request.request_id for request in fake.requests}) == 1

    @pytest.mark.parametrize(
        ("status", "words"),
        [
            ("UNAVAILABLE", "This protocol is restricted, expecting header 'triton-grpc-protocol-x'"),
            ("INVALID_ARGUMENT", "unexpected shape for input 'image'"),
            ("INTERNAL", "Stub process 'medclip_0_0' is not healthy."),
            ("NOT_FOUND", "Request for unknown model: 'm' is not found"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_but_not_where_it_would_fail_again(
        self, fake: FakeServer, client: XrayClient, status: str, words: str
    ) -> None:
        fake.fail(status, words)
        with pytest.raises(XrayError) as caught:
            client.classify(grey(9))
        assert caught.value.attempts == len(fake.requests) == 1

    def test_not_for_ever_where_it_may_be_what_breaks_the_server(self, fake: FakeServer, client: XrayClient) -> None:
        client.classify(grey(9))
        fake.fail("UNAVAILABLE", "Socket closed")
        with pytest.raises(ServerUnreachable, match="after 3 attempts") as caught:
            client.classify(grey(9))
        assert caught.value.attempts == 3
        assert len(fake.requests) == 4

    def test_as_often_as_the_caller_wants(self, fake: FakeServer) -> None:
        fake.fail("UNAVAILABLE", "Exceeds maximum queue size")
        for retries in (0, 1, 3):
            fake.requests.clear()
            with XrayClient(fake.url, retries=retries) as client, pytest.raises(QueueFull):
                client.classify(grey(9))
            assert len(fake.requests) == retries + 1

    def test_after_pauses_that_grow_and_are_never_the_same(self) -> None:
        pauses = [[backoff(attempt) for _ in range(100)] for attempt in range(1, 12)]
        assert all(0.025 <= pause <= 0.05 for pause in pauses[0])
        assert all(1 <= pause <= 2 for pause in pauses[-1])
        assert all(len(set(each)) > 90 for each in pauses)

    def test_but_health_and_check_say_how_it_is_now(self, fake: FakeServer) -> None:
        client = XrayClient(fake.url, timeout=3600)
        client.classify(grey(9))
        fake.stop()
        assert client.health() is False


class TestTheRequest:
    def test_is_an_id_that_the_answer_and_the_headers_have_too(self, fake: FakeServer, client: XrayClient) -> None:
        answer = client.classify(grey(9))
        assert re.fullmatch("[0-9a-f]{16}", answer.request_id)
        assert fake.requests[0].request_id == fake.requests[0].headers["x-request-id"] == answer.request_id

    def test_is_a_trace_of_its_own_or_the_callers(self, fake: FakeServer, client: XrayClient) -> None:
        client.classify(grey(9))
        client.classify(grey(9), traceparent=TRACE)
        own, callers = (request.headers["traceparent"] for request in fake.requests)
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", own)
        assert callers.startswith(TRACE[:36])
        assert callers.endswith("-01")
        assert callers != TRACE  # a span of its own
        with pytest.raises(ValueError, match="traceparent"):
            client.classify(grey(9), traceparent="nonsense")

    def test_is_nothing_of_the_patient(self, fake: FakeServer, client: XrayClient, tmp_path: Path) -> None:
        client.classify(save(tmp_path / "Mustermann_Erika_1964.png", 9))
        everything = fake.requests[0].message.SerializeToString() + repr(fake.requests[0].headers).encode()
        assert b"Erika" not in everything
        assert set(fake.requests[0].headers) == {"x-request-id", "traceparent", "user-agent"}

    def test_is_a_priority_where_one_is_given(self, fake: FakeServer, client: XrayClient) -> None:
        client.classify(grey(9))
        client.classify(grey(9), priority="stat")
        client.classify(grey(9), priority="routine")
        list(client.classify_many([grey(9)], priority="stat"))
        assert [request.priority for request in fake.requests] == [0, 1, 2, 1]
        with pytest.raises(ValueError, match="'soon' is none of stat, routine"):
            client.classify(grey(9), priority="soon")

    def test_is_how_long_somebody_waits(self, fake: FakeServer) -> None:
        with XrayClient(fake.url, timeout=3) as client:
            client.classify(grey(9))
        assert 2 < fake.requests[0].timeout <= 3

    def test_are_the_callers_headers(self, fake: FakeServer) -> None:
        with XrayClient(fake.url, headers={"triton-grpc-protocol-key": "hush"}) as client:
            client.classify(grey(9))
            assert "hush" not in repr(client)
        assert fake.requests[0].headers["triton-grpc-protocol-key"] == "hush"

    @pytest.mark.parametrize(
        "headers",
        [{"Upper": "x"}, {"grpc-timeout": "1"}, {"a-bin": "1"}, {"a b": "1"}, {"authorization": "x"}],
        ids=str,
    )
    def test_is_no_header_that_grpc_or_the_client_needs(self, headers: dict[str, str]) -> None:
        with pytest.raises(ValueError, match="header"):
            XrayClient(headers=headers)

    def test_a_bad_headers_value_is_refused_without_showing_it(self) -> None:
        with pytest.raises(ValueError, match="'key'") as caught:
            XrayClient(headers={"key": "secret\n"})
        assert "secret" not in str(caught.value)


class TestAToken:
    def test_is_sent_as_bearer_and_asked_for_once_a_minute(
        self, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tokens = iter(["first\n", "second"])
        with XrayClient(fake.url, token=lambda: next(tokens)) as client:
            client.classify(grey(9))
            client.classify(grey(9))
            sent = [request.headers["authorization"] for request in fake.requests]
            assert sent == ["Bearer first"] * 2
            monkeypatch.setattr(_token, "TOKEN_LIFETIME", 0.0)
            client.classify(grey(9))
        assert fake.requests[-1].headers["authorization"] == "Bearer second"

    def test_that_is_refused_is_asked_for_once_more(self, fake: FakeServer) -> None:
        tokens = iter(["old", "new", "newer"])
        fake.fail("UNAUTHENTICATED", "expired", times=1)
        with XrayClient(fake.url, token=lambda: next(tokens)) as client:
            assert client.classify(grey(9)).timing.attempts == 2
            assert [request.headers["authorization"] for request in fake.requests] == ["Bearer old", "Bearer new"]
            fake.fail("UNAUTHENTICATED", "expired")
            with pytest.raises(AuthenticationFailed, match="after 2 attempts"):
                client.classify(grey(9))

    def test_is_never_shown(self, fake: FakeServer) -> None:
        with XrayClient(fake.url, token=lambda: "hush-hush") as client:
            fake.fail("PERMISSION_DENIED", "no")
            with pytest.raises(AuthenticationFailed) as caught:
                client.classify(grey(9))
            shown = [repr(client), repr(vars(client)), str(caught.value), repr(caught.value), repr(vars(caught.value))]
            assert not any("hush" in text for text in shown)

    @pytest.mark.parametrize("url", ["triton.lan:8001", "127.0.0.1.example.org:8001", "127.0.0.1:1,10.0.0.7:1"])
    def test_does_not_cross_the_network_in_the_clear(self, url: str) -> None:
        with pytest.raises(ValueError, match="in the clear"):
            XrayClient(url, token=lambda: "hush")
        XrayClient(url, token=lambda: "hush", tls=TLS(server_name="triton.lan"))

    def test_that_cannot_be_had_is_an_error_with_its_cause(self, fake: FakeServer) -> None:
        def broken() -> str:
            raise OSError("vault is sealed")

        for token, words in ((broken, "could be fetched"), (lambda: "two words", "one word"), (lambda: "", "one word")):
            with (
                XrayClient(fake.url, token=token) as client,
                pytest.raises(AuthenticationFailed, match=words) as caught,
            ):
                client.classify(grey(9))
            assert "vault" not in str(caught.value)
            assert (caught.value.__cause__ is not None) is (token is broken)

    def test_that_never_comes_costs_no_more_than_the_timeout(self, fake: FakeServer) -> None:
        gate = Gate()

        def slow() -> str:
            gate.hold()
            return "late"

        with XrayClient(fake.url, timeout=0.3, token=slow) as client:
            with pytest.raises(DeadlineExceeded, match=r"no token within 0.3 s"):
                client.classify(grey(9))
            (failure,) = client.classify_many([grey(9)])
            assert isinstance(failure, Failure)
            assert isinstance(failure.error, DeadlineExceeded)
            gate.open()
            assert client.classify(grey(9), timeout=10).decision == 0


class TestAnError:
    def test_knows_the_call_that_it_came_from(self, fake: FakeServer, client: XrayClient, tmp_path: Path) -> None:
        path = save(tmp_path / "chest.png", 9)
        fake.fail("INVALID_ARGUMENT", "unexpected shape")
        with pytest.raises(RequestRejected) as caught:
            client.classify(path)
        error = pickle.loads(pickle.dumps(caught.value))
        for err in (caught.value, error):
            assert (err.file, err.model, err.attempts) == (str(path), "medclip", 1)
            assert err.request_id == fake.requests[0].request_id
        with pytest.raises(ImageUnreadable) as unread:
            client.classify(tmp_path / "missing.png")
        assert (unread.value.file, unread.value.attempts) == (str(tmp_path / "missing.png"), 0)


class TestEndpoints:
    def test_are_one_several_or_a_name_for_several(self) -> None:
        assert Endpoints.parse("host:8001").targets == ("host:8001",)
        assert Endpoints.parse("127.0.0.1:1, 127.0.0.2:2").targets == ("127.0.0.1:1", "127.0.0.2:2")
        assert Endpoints.parse("[::1]:1,localhost:2").targets == ("[::1]:1", "localhost:2")
        named = Endpoints.parse("dns:///triton.lan:8001")
        assert named.targets == ("dns:///triton.lan:8001",)
        assert named.several
        assert not Endpoints.parse("host:8001").several

    @pytest.mark.parametrize("url", ["a:1,", "a:1,b", "dns:///a:1,b:2", "dns://a:1", "a:70000", "http://a:1"])
    def test_anything_else_is_refused(self, url: str) -> None:
        with pytest.raises(ValueError):
            XrayClient(url)

    def test_of_which_none_is_known_are_unreachable(self) -> None:
        client = XrayClient("nowhere.invalid:1,neither.invalid:1", timeout=5)
        with pytest.raises((ServerUnreachable, DeadlineExceeded)):
            client.check()

    def test_take_turns_and_a_failed_one_is_left_out(self) -> None:
        with FakeServer() as first, FakeServer() as second, XrayClient(f"{first.url},{second.url}") as client:
            for _ in range(4):
                client.classify(grey(1))
            assert first.requests
            assert second.requests
            first.stop()
            assert [client.classify(grey(1)).decision for _ in range(20)] == [0] * 20


class TestTLS:
    def test_does_not_show_the_key(self) -> None:
        assert "secret" not in repr(TLS(cert=b"public", key=b"secret"))

    def test_wants_certificate_and_key_together(self) -> None:
        with pytest.raises(ValueError, match="both or neither"):
            TLS(cert="me.pem")

    def test_whose_files_are_no_pem_says_which(self, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_text("no certificate")
        for name, words in (("ca.pem", "holds no PEM"), ("missing.pem", "the TLS ca cannot be read")):
            with XrayClient("127.0.0.1:1", tls=TLS(ca=tmp_path / name)) as client:
                with pytest.raises(TLSFailed, match=words) as caught:
                    client.check()
                assert caught.value.source == str(tmp_path / name)


def test_a_request_context_holds_nothing_but_random_numbers() -> None:
    first, second = RequestContext(Deadline(1)), RequestContext(Deadline(1))
    assert first.request_id != second.request_id
    assert first.span()[:36] == first.span()[:36] != second.span()[:36]

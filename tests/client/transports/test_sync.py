"""A server in trouble: the right error, and never later than the timeout."""

from __future__ import annotations

import socket

import pytest

from tests.helpers.gates import Gate, wait_until
from tests.helpers.radiographs import grey
from xray_client import (
    AuthenticationFailed,
    DeadlineExceeded,
    ModelNotFound,
    Preprocessing,
    RequestRejected,
    ServerNotReady,
    ServerUnreachable,
    XrayClient,
)
from xray_client.testing import FakeServer


class TestAServerInTrouble:
    def test_that_is_not_there_is_unreachable_at_once(self) -> None:
        with XrayClient("127.0.0.1:1", timeout=3600) as client:
            with pytest.raises(
                ServerUnreachable, match=r"nothing listens there, after 3 attempts .*xray-server"
            ) as caught:
                client.classify(grey(1))
            assert caught.value.__cause__ is not None
            assert client.health() is False

    def test_that_accepts_and_never_answers_costs_no_more_than_the_timeout(self) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as hole,
            XrayClient(f"127.0.0.1:{hole.getsockname()[1]}", timeout=0.4) as client,
        ):
            for call in (lambda: client.classify(grey(1)), lambda: client.preprocessing, client.check):
                with pytest.raises(DeadlineExceeded, match=r"no answer within 0.4 s"):
                    call()
            assert client.health() is False

    def test_that_is_slow_costs_no_more_than_the_timeout(self, fake: FakeServer) -> None:
        gate = Gate()
        with XrayClient(fake.url) as client:
            client.classify(grey(1))
            fake.alter = gate.hold
            with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.4 s"):
                client.classify(grey(1), timeout=0.4)
        assert gate.closed
        gate.open()

    def test_costs_no_more_than_the_timeout_when_the_image_is_sent_twice(self, fake: FakeServer) -> None:
        gate = Gate()

        def hold_the_second(_: object) -> None:
            if len(fake.requests) == 2:
                gate.hold()

        with XrayClient(fake.url, timeout=1) as client:
            assert client.preprocessing
            fake.serve("2", Preprocessing(geometry="stretch"))
            fake.alter = hold_the_second
            with pytest.raises(DeadlineExceeded, match="no answer within 1 s"):
                client.classify(grey(1))
            first, second = fake.requests
            assert second.timeout < first.timeout <= 1
        gate.open()

    def test_is_told_apart_by_its_words(self, fake: FakeServer) -> None:
        client = XrayClient(fake.url, retries=0)
        for status, words, error in (
            ("UNAVAILABLE", "Request timeout expired", ServerNotReady),
            (
                "UNAVAILABLE",
                "This protocol is restricted, expecting header 'triton-grpc-protocol-x'",
                AuthenticationFailed,
            ),
            ("UNAVAILABLE", "Socket closed", ServerUnreachable),
            ("INVALID_ARGUMENT", "unexpected shape for input 'image'", RequestRejected),
        ):
            fake.fail(status, words)
            with pytest.raises(error, match=words) as caught:
                client.classify(grey(1))
            assert caught.value.__cause__ is not None
            assert caught.value.source == f"medclip at {fake.url}"

    def test_that_lacks_the_model_or_the_version_says_so(self, fake: FakeServer) -> None:
        for options in ({"model": "other"}, {"model_version": "9"}):
            with XrayClient(fake.url, **options) as client, pytest.raises(ModelNotFound):
                client.classify(grey(1))

    def test_that_comes_back_is_used_again_by_the_same_client(self, fake: FakeServer) -> None:
        client = XrayClient(fake.url, timeout=1)
        client.classify(grey(1))
        fake.stop()
        with pytest.raises(ServerUnreachable):
            client.classify(grey(1))
        with FakeServer(port=int(fake.url.rpartition(":")[2])):
            wait_until(client.health)
            assert client.classify(grey(1)).decision == 0

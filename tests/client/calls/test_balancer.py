"""Several servers, one of which hangs, fails or moves, and the time of one attempt."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from tests.helpers.gates import Gate
from tests.helpers.radiographs import grey
from xray_client import (
    AsyncXrayClient,
    Endpoints,
    Failure,
    ModelNotFound,
    Prediction,
    XrayClient,
)
from xray_client._calls.balancer import Balancer
from xray_client.testing import FakeServer

HANGS = 60.0  # seconds
LEVELS = [*range(0, 250, 10)]


@contextmanager
def black_hole() -> Iterator[str]:
    """An address that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as hole:
        yield f"127.0.0.1:{hole.getsockname()[1]}"


@contextmanager
def one_hangs(fake: FakeServer, how: str) -> Iterator[str]:
    """Addresses of a server that hangs, in one way or the other, and of a good one."""
    if how == "says nothing":
        with black_hole() as hole:
            yield f"{hole},{fake.url}"
    else:
        with FakeServer() as hanging:
            hanging.delay = HANGS
            yield f"{hanging.url},{fake.url}"


def levels_of(answers: list[Prediction | Failure]) -> list[int]:
    assert not [str(answer) for answer in answers if isinstance(answer, Failure)]
    return [round(answer.probability * 255) for answer in answers if isinstance(answer, Prediction)]


class TestTheChoice:
    def test_is_round_robin(self) -> None:
        servers = Balancer("abc")
        turns = Counter(servers.choose([]) for _ in range(30))
        assert turns == {0: 10, 1: 10, 2: 10}

    def test_leaves_a_failed_server_out_until_one_request_finds_it_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 1000.0  # seconds
        monkeypatch.setattr("xray_client._calls.balancer.time.monotonic", lambda: now)
        servers = Balancer("ab")
        for cooldown in (4.5, 9.0, 18.0, 36.0, 60.0, 60.0):
            servers.failed(1, after=1)
            assert {servers.choose([]) for _ in range(10)} == {0}
            assert servers.others([]) == 1
            now += cooldown - 0.1
            assert servers.choose([]) == 0
            now += 0.2
            assert [servers.choose([]) for _ in range(10)].count(1) == 1
        servers.answered(1)
        assert {servers.choose([]) for _ in range(2)} == {0, 1}

    def test_is_the_server_that_failed_first_where_all_have_failed(self) -> None:
        servers = Balancer("abc")
        for server in (2, 0, 1):
            servers.failed(server)
        assert servers.others([]) == 0
        assert servers.choose([]) == 2

    def test_prefers_a_server_that_was_not_asked(self) -> None:
        servers = Balancer("abc")
        asked = [servers.choose([])]
        for _ in range(2):
            asked.append(servers.choose(asked))
        assert sorted(asked) == [0, 1, 2]
        assert servers.choose(asked) == asked[0]


class TestAServerThatHangs:
    @pytest.mark.parametrize("how", ["says nothing", "never answers"])
    def test_costs_no_image_where_another_answers(self, fake: FakeServer, how: str) -> None:
        with one_hangs(fake, how) as url, XrayClient(url, timeout=60, attempt_timeout=1) as client:
            assert client.health()
            answers = list(client.classify_many(map(grey, LEVELS), max_in_flight=4))
        assert levels_of(answers) == LEVELS

    @pytest.mark.parametrize("how", ["says nothing", "never answers"])
    def test_costs_no_image_with_asyncio_either(self, fake: FakeServer, how: str) -> None:
        async def ask(url: str) -> list[Prediction | Failure]:
            async with AsyncXrayClient(url, timeout=60, attempt_timeout=1) as client:
                assert await client.health()
                return [answer async for answer in client.classify_many(map(grey, LEVELS), max_in_flight=4)]

        with one_hangs(fake, how) as url:
            assert levels_of(asyncio.run(ask(url))) == LEVELS

    def test_is_told_to_drop_the_image_when_the_attempt_is_over(self, fake: FakeServer) -> None:
        with FakeServer() as other, XrayClient(f"{fake.url},{other.url}", timeout=20) as client:
            client.classify(grey(1))
            (request,) = fake.requests + other.requests
            assert 5 < request.timeout <= 10

    def test_keeps_the_whole_time_where_sending_again_is_not_wanted(self, fake: FakeServer) -> None:
        with FakeServer() as other, XrayClient(f"{fake.url},{other.url}", timeout=20, retries=0) as client:
            client.classify(grey(1))
            (request,) = fake.requests + other.requests
            assert request.timeout > 10


class TestOneAttempt:
    def test_may_be_limited_by_the_caller(self, fake: FakeServer) -> None:
        gate = Gate()

        def hold_the_first(_: object) -> None:
            if len(fake.requests) > 1:
                gate.open()
            gate.hold()

        fake.alter = hold_the_first
        with XrayClient(fake.url, timeout=30, attempt_timeout=2) as client:
            answer = client.classify(grey(9))
        assert answer.decision == 0
        assert answer.timing.attempts > 1

    def test_of_no_time_is_refused(self) -> None:
        for seconds in (0, -1, 1e9):
            with pytest.raises(ValueError, match="attempt_timeout"):
                XrayClient(attempt_timeout=seconds)


class TestAServerThatIsGone:
    def test_is_passed_over_even_where_nothing_is_sent_again(self, fake: FakeServer) -> None:
        with XrayClient(f"127.0.0.1:1,{fake.url}", retries=0) as client:
            for _ in range(4):
                assert client.health()
                assert client.classify(grey(1)).decision == 0
            assert len(fake.requests) == 4

    def test_does_not_make_the_others_unhealthy(self, fake: FakeServer) -> None:
        with FakeServer() as other, XrayClient(f"{fake.url},{other.url}") as client:
            for _ in range(4):
                client.classify(grey(1))
            other.stop()
            assert [client.health() for _ in range(4)] == [True] * 4
            fake.stop()
            assert client.health() is False

    def test_as_one_that_does_not_know_its_models_yet_is_another_ones_turn(self, fake: FakeServer) -> None:
        with FakeServer() as starting, XrayClient(f"{starting.url},{fake.url}", retries=0) as client:
            starting.fail("NOT_FOUND", "Request for unknown model: 'medclip' is not found")
            assert levels_of(list(client.classify_many(map(grey, LEVELS), max_in_flight=2))) == LEVELS
            assert starting.requests
            fake.fail("NOT_FOUND", "Request for unknown model: 'medclip' is not found")
            with pytest.raises(ModelNotFound):
                client.classify(grey(1))

    @pytest.mark.parametrize("words", ["Server is stopping, scheduler for model", "GRPC server is shutting down"])
    def test_as_one_that_is_being_stopped_is_another_ones_turn(self, fake: FakeServer, words: str) -> None:
        with FakeServer() as stopping, XrayClient(f"{stopping.url},{fake.url}") as client:
            stopping.fail("UNAVAILABLE", words)
            answers = list(client.classify_many(map(grey, LEVELS), max_in_flight=2))
            assert levels_of(answers) == LEVELS
            assert stopping.requests


class NameServer:
    """A name server of one IPv4 address, which may change: RFC 1035 as far as one question needs it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.questions = 0

    def __enter__(self) -> NameServer:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._answer, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _answer(self) -> None:
        while True:
            try:
                query, asker = self._socket.recvfrom(4096)
            except OSError:  # closed
                return
            self.questions += 1
            end = query.index(b"\0", 12) + 5
            is_a = query[end - 4 : end - 2] == b"\0\1"
            record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 3600, 4) + socket.inet_aton(self.address)
            header = query[:2] + b"\x81\x80" + struct.pack(">HHHH", 1, is_a, 0, 0)
            with suppress(OSError):  # closed meanwhile
                self._socket.sendto(header + query[12:end] + (record if is_a else b""), asker)


@pytest.mark.parametrize("several", [False, True], ids=["alone", "in a list"])
def test_a_server_that_comes_back_under_another_address_is_found_by_its_name(
    several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a container that was restarted; gRPC is pointed to a name server that says so."""
    with FakeServer() as before, NameServer("127.0.0.1") as names:
        port = int(before.url.rpartition(":")[2])
        moving = f"dns://{names.url}/triton.example:{port}"
        monkeypatch.setattr(Endpoints, "targets", property(lambda self: (moving, "127.0.0.1:1")[: 1 + several]))
        url = f"triton.example:{port},127.0.0.1:1" if several else f"triton.example:{port}"
        with XrayClient(url, timeout=20) as client:
            client.classify(grey(1))
            before.stop()
            with FakeServer(port, host="127.0.0.2") as after:
                names.address = "127.0.0.2"
                assert client.classify(grey(9)).decision == 0
                assert len(after.requests) == 1


def test_one_prepared_image_reaches_whichever_server_answers(fake: FakeServer) -> None:
    with black_hole() as hole, XrayClient(f"{hole},{fake.url}", timeout=60, attempt_timeout=1) as client:
        image = np.full((1, 224, 224), 7, np.uint8)
        assert {client.classify(image).finding for _ in range(3)} == {"Normal"}

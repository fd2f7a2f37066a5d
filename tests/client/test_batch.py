"""Many radiographs: in order, lazily, bounded, and each answered exactly once."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.gates import Gate, HangingFile, wait_until
from tests.helpers.radiographs import grey, level_of
from xray_client import (
    Failure,
    ImageUnreadable,
    ImageUnsupported,
    Prediction,
    ServerNotReady,
    ServerUnreachable,
    XrayClient,
)
from xray_client.testing import FakeServer, Outputs


def test_the_answers_come_in_the_order_of_the_images(fake: FakeServer, client: XrayClient) -> None:
    answered = [threading.Event() for _ in range(64)]

    def last_first(outputs: Outputs) -> None:
        level = round(float(outputs["probability"][0, 1]) * 255)
        if level % 8 < 7:
            answered[level + 1].wait(60)
        answered[level].set()

    fake.alter = last_first
    assert [level_of(answer) for answer in client.classify_many(map(grey, range(64)), max_in_flight=8)] == [*range(64)]


def test_no_more_than_the_limit_is_in_flight_or_taken_ahead(fake: FakeServer, client: XrayClient) -> None:
    taken = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal taken
        for level in range(30):
            taken += 1
            yield grey(level)

    together = threading.Barrier(3)
    fake.alter = lambda _: together.wait(60)
    for done, answer in enumerate(client.classify_many(images(), max_in_flight=3), start=1):
        assert level_of(answer) == done - 1
        assert taken <= done + 3
    assert fake.most_in_flight == 3


def test_nothing_is_taken_before_the_first_answer_is_wanted(client: XrayClient) -> None:
    taken: list[int] = []
    answers = client.classify_many(taken.append(level) or grey(level) for level in range(10))  # type: ignore[func-returns-value]
    assert not taken
    answers.close()
    assert not taken


def test_a_bad_image_fails_in_its_place_and_the_others_go_on(client: XrayClient, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    answers = list(client.classify_many([grey(10), bad, grey(20), np.zeros((2, 2)), grey(30)]))
    assert [level_of(answers[place]) for place in (0, 2, 4)] == [10, 20, 30]
    first, second = answers[1], answers[3]
    assert isinstance(first, Failure)
    assert isinstance(second, Failure)
    assert isinstance(first.error, ImageUnsupported)
    assert (first.file, second.file) == (str(bad), None)
    assert str(first) == f"{bad}: not a PNG, JPEG, TIFF, BMP or DICOM image (convert it to PNG)"


def test_a_failing_server_fails_each_image_in_its_place(fake: FakeServer) -> None:
    client = XrayClient(fake.url, retries=0)
    fake.fail("UNAVAILABLE", "Request timeout expired")
    answers = list(client.classify_many([grey(10), grey(20)], max_in_flight=1))
    assert [type(answer) for answer in answers] == [Failure, Failure]
    assert all(isinstance(answer, Failure) and isinstance(answer.error, ServerNotReady) for answer in answers)


def test_a_server_that_dies_on_the_way_loses_no_image(fake: FakeServer) -> None:
    client = XrayClient(fake.url, timeout=1)
    answers = []
    for answer in client.classify_many(map(grey, range(60)), max_in_flight=4):
        answers.append(answer)
        if len(answers) == 20:
            fake.stop()
    assert len(answers) == 60
    assert [level_of(answer) for answer in answers[:20]] == [*range(20)]
    assert isinstance(answers[-1], Failure)
    assert isinstance(answers[-1].error, ServerUnreachable)


def test_an_error_that_is_kept_does_not_keep_the_image(client: XrayClient, tmp_path: Path) -> None:
    (failure,) = client.classify_many([tmp_path / "missing.png"])
    assert isinstance(failure, Failure)
    assert failure.error.__traceback__ is None
    assert failure.error.__cause__ is not None
    assert failure.error.__cause__.__traceback__ is None


def test_a_caller_who_stops_early_does_not_wait(fake: FakeServer) -> None:
    gate, client = Gate(), XrayClient(fake.url, timeout=3600)
    for answer in client.classify_many(map(grey, range(1000)), max_in_flight=4):
        fake.alter = gate.hold
        assert level_of(answer) == 0
        break
    client.close()
    assert gate.closed
    gate.open()
    wait_until(lambda: not workers())
    assert len(fake.requests) <= 6


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("xray-client")]


def test_a_generator_that_breaks_is_raised_after_its_images_are_answered(client: XrayClient) -> None:
    def images() -> Iterator[np.ndarray]:
        yield grey(1)
        yield grey(2)
        raise LookupError("the list ends here")

    answers = []
    with pytest.raises(LookupError, match="the list ends here"):
        answers += [answers.append(level_of(answer)) for answer in client.classify_many(images())]  # type: ignore[func-returns-value]
    assert answers == [1, 2]


def test_no_images_give_no_answers(client: XrayClient) -> None:
    assert list(client.classify_many([])) == []


@pytest.mark.parametrize("one", ["chest.png", b"bytes", Path("chest.png"), np.zeros((4, 4), np.uint8)], ids=str)
def test_one_image_is_not_many(client: XrayClient, one: object) -> None:
    with pytest.raises(TypeError, match="for one there is classify"):
        client.classify_many(one)


def test_the_limit_is_at_least_one(client: XrayClient) -> None:
    with pytest.raises(ValueError, match="max_in_flight"):
        client.classify_many([], max_in_flight=0)


def test_requests_overlap(fake: FakeServer, client: XrayClient) -> None:
    client.classify(grey(0))
    together = threading.Barrier(8)
    fake.alter = lambda _: together.wait(60)
    assert len(list(client.classify_many(map(grey, range(16)), max_in_flight=8))) == 16
    assert fake.most_in_flight == 8


class TestAFileThatHangs:
    """A read from a drive that has gone away can be neither timed nor interrupted."""

    @pytest.mark.parametrize("max_in_flight", [1, 4])
    @pytest.mark.parametrize("ordered", [True, False])
    def test_fails_in_time_and_the_others_go_on(self, fake: FakeServer, max_in_flight: int, ordered: bool) -> None:
        gate = Gate()
        sources = [grey(1), HangingFile(gate), grey(2), HangingFile(gate), *map(grey, range(3, 9))]
        with XrayClient(fake.url, timeout=1) as client:
            client.classify(grey(0))
            answers = list(client.classify_many(sources, max_in_flight=max_in_flight, ordered=ordered))
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        for failure in failures:
            assert isinstance(failure.error, ImageUnreadable)
            assert failure.error.message == "reading it did not end within 1 s"
            assert (failure.error.source, failure.error.model) == ("HangingFile", "medclip")
            assert len(failure.error.request_id) == 16
        if ordered:
            assert [answers.index(failure) for failure in failures] == [1, 3]
        levels = [level_of(answer) for answer in answers if isinstance(answer, Prediction)]
        assert (levels if ordered else sorted(levels)) == [*range(1, 9)]
        assert len(failures) == 2
        assert len(workers()) >= 2
        gate.open()
        wait_until(lambda: not workers())

    def test_that_comes_back_after_all_is_not_answered_twice(self, fake: FakeServer) -> None:
        gate, buffer = Gate(), io.BytesIO()
        Image.fromarray(grey(9)).save(buffer, "PNG")
        with XrayClient(fake.url, timeout=1) as client:
            client.classify(grey(0))
            answers = client.classify_many([HangingFile(gate, buffer.getvalue()), grey(1)], max_in_flight=1)
            assert isinstance(next(answers), Failure)
            gate.open()
            assert [level_of(answer) for answer in answers] == [1]
            wait_until(lambda: not workers())
        assert len(fake.requests) == 2

    def test_does_not_keep_the_interpreter_alive(self, fake: FakeServer) -> None:
        code = """
        import sys, threading
        from xray_client import XrayClient

        class Hanging:
            def read(self, size=-1):
                threading.Event().wait()

        with XrayClient(sys.argv[1], timeout=2) as client:
            (failure,) = client.classify_many([Hanging()])
        print(failure.error.message)
        """
        program = [sys.executable, "-c", textwrap.dedent(code), fake.url]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.returncode) == ("reading it did not end within 2 s\n", 0), done.stderr


def test_an_image_is_read_in_the_worker_that_sends_it(client: XrayClient) -> None:
    threads: list[str] = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            threads.append(threading.current_thread().name)
            return super().read(size)

    buffer = io.BytesIO()
    Image.fromarray(grey(9)).save(buffer, "PNG")
    files = [Watched(buffer.getvalue()) for _ in range(8)]
    assert [level_of(answer) for answer in client.classify_many(files, max_in_flight=2)] == [9] * 8
    assert set(threads) == {"xray-client-worker"}
    threads.clear()
    client.classify(Watched(buffer.getvalue()))
    assert set(threads) == {"xray-client-read"}


@pytest.mark.parametrize("bad", [{"timeout": 0}, {"timeout": -1.0}, {"timeout": 1e9}, {"priority": "soon"}], ids=str)
def test_arguments_are_checked_before_the_first_image_is_taken(client: XrayClient, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        client.classify_many(iter([grey(1)]), **bad)


def test_each_image_has_the_timeout_of_the_call(fake: FakeServer, client: XrayClient) -> None:
    assert len(list(client.classify_many([grey(1), grey(2)], timeout=30))) == 2
    assert all(20 < request.timeout <= 30 for request in fake.requests)

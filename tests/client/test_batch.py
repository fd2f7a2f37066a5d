"""Many radiographs: in order, lazily, bounded, and each answered exactly once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.radiographs import grey
from xray_client import Failure, ImageUnsupported, Prediction, ServerNotReady, ServerUnreachable, XrayClient
from xray_client.testing import FakeServer


def level_of(answer: Prediction | Failure) -> int:
    assert isinstance(answer, Prediction)
    return round(answer.probability * 255)


def test_the_answers_come_in_the_order_of_the_images(fake: FakeServer, client: XrayClient) -> None:
    fake.alter = lambda outputs: time.sleep(float(outputs["probability"][0, 0]) / 50)  # the first take longest
    assert [level_of(answer) for answer in client.classify_many(map(grey, range(0, 256, 3)))] == [*range(0, 256, 3)]


def test_no_more_than_the_limit_is_in_flight_or_taken_ahead(fake: FakeServer, client: XrayClient) -> None:
    taken = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal taken
        for level in range(30):
            taken += 1
            yield grey(level)

    fake.delay = 0.01
    for done, answer in enumerate(client.classify_many(images(), max_in_flight=3), start=1):
        assert level_of(answer) == done - 1
        assert taken <= done + 3
    assert 2 <= fake.most_in_flight <= 3


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


def test_a_caller_who_stops_early_does_not_wait(fake: FakeServer, client: XrayClient) -> None:
    started = time.monotonic()
    for answer in client.classify_many(map(grey, range(1000)), max_in_flight=4):
        fake.delay = 4
        assert level_of(answer) == 0
        break
    client.close()
    assert time.monotonic() - started < 2
    until = time.monotonic() + 2
    while time.monotonic() < until and any(thread.name.startswith("xray-client") for thread in threading.enumerate()):
        time.sleep(0.01)
    assert not any(thread.name.startswith("xray-client") for thread in threading.enumerate())
    assert len(fake.requests) <= 6


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


def test_decoding_overlaps_the_network(fake: FakeServer, client: XrayClient) -> None:
    client.classify(grey(0))
    fake.delay = 0.2
    started = time.monotonic()
    assert len(list(client.classify_many(map(grey, range(16)), max_in_flight=8))) == 16
    assert time.monotonic() - started < 0.2 * 16 / 2

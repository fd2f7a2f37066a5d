"""Workers that may be abandoned while they read."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from tests.helpers.gates import Gate, wait_until
from xray_client import ImageUnreadable
from xray_client._calls.deadline import Deadline
from xray_client._calls.effects import Steps, Work
from xray_client._config import Settings
from xray_client._transports.sync import Transport
from xray_client._transports.workers import Reading, Task, Workers

LONG = 3600.0


@pytest.fixture
def workers() -> Iterator[Workers[object]]:
    pool: Workers[object] = Workers(2)
    yield pool
    pool.close()
    wait_until(lambda: not _threads())


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "xray-client-worker"]


def _task(function: object, seconds: float = LONG, *, reading: bool = False) -> Task[object]:
    """A call that runs a function, as a read or as anything else."""
    deadline = Deadline(seconds)
    transport = Transport(Settings("127.0.0.1:1", "medclip", "", timeout=LONG))

    def steps() -> Steps[object]:
        result: object = yield Work(function, deadline, lambda: deadline.unread("file"), reading=reading)  # type: ignore[arg-type]
        return result

    def call(state: Reading) -> object:
        return transport.run(steps(), state) if reading else function()  # type: ignore[operator]

    return Task(call, deadline, lambda error: error)


def _result(workers: Workers[object], task: Task[object]) -> object:
    while not task.done():
        workers.wait([task])
    return task.future.result()


def test_one_worker_is_enough_for_one_task_after_the_other(workers: Workers[object]) -> None:
    for number in range(20):
        assert _result(workers, workers.submit(_task(lambda number=number: number))) == number
        wait_until(lambda: workers.idle == len(_threads()))
    assert len(_threads()) == 1


def test_there_are_no_more_workers_than_the_limit(workers: Workers[object]) -> None:
    gate = Gate()
    tasks = [workers.submit(_task(gate.hold)) for _ in range(5)]
    gate.wait_for(2)
    assert len(_threads()) == 2
    gate.open()
    for task in tasks:
        assert _result(workers, task) is None


def test_a_read_that_is_late_is_abandoned_and_its_worker_replaced(workers: Workers[object]) -> None:
    gate = Gate()
    late = [workers.submit(_task(gate.hold, 0.1, reading=True)) for _ in range(2)]
    for task in late:
        assert isinstance(_result(workers, task), ImageUnreadable)
    assert _result(workers, workers.submit(_task(lambda: "answer"))) == "answer"
    gate.open()


def test_a_read_that_ends_late_is_late_even_if_nobody_looked(workers: Workers[object]) -> None:
    gate = Gate()
    task = workers.submit(_task(gate.hold, 0.05, reading=True))
    gate.wait_for(1)
    wait_until(lambda: task.deadline.passed)
    gate.open()
    wait_until(task.done)
    with pytest.raises(ImageUnreadable):
        task.future.result()


def test_an_error_reaches_the_one_who_waits(workers: Workers[object]) -> None:
    def broken() -> None:
        raise LookupError("the reason")

    task = workers.submit(_task(broken, reading=True))
    with pytest.raises(LookupError, match="the reason"):
        _result(workers, task)


def test_an_idle_worker_keeps_no_image(workers: Workers[object]) -> None:
    image = np.zeros((9, 9))
    kept = weakref.ref(image)
    task = workers.submit(_task(lambda image=image: image.sum()))
    assert _result(workers, task) == 0
    del task, image
    wait_until(lambda: gc.collect() >= 0 and kept() is None)


def test_no_task_begins_after_the_end() -> None:
    workers: Workers[object] = Workers(1)
    gate, begun = Gate(), []
    workers.submit(_task(gate.hold))
    gate.wait_for(1)
    workers.submit(_task(lambda: begun.append(1)))
    workers.close()
    gate.open()
    wait_until(lambda: not _threads())
    assert not begun

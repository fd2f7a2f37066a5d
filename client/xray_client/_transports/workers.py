"""Worker threads that carry out whole calls and may be abandoned while they read an image."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Generic, TypeVar

from xray_client._calls.deadline import Deadline
from xray_client._calls.effects import Work
from xray_client._exceptions import XrayError

R = TypeVar("R")

# Seconds between two looks at a call whose time is up and that is about to end by itself.
_GRACE = 0.02
# Longest wait in one piece. Python acts on Ctrl-C between two instructions: one that comes just before a wait, while
# threads take turns, would be noticed when the wait ends.
_PIECE = 0.5


class Reading:
    """The read that a worker is in, seen from the thread that waits for it.

    Attributes:
        work: The read; None = the worker is not reading.
    """

    __slots__ = ("work",)

    def __init__(self) -> None:
        self.work: Work | None = None


class Task(Generic[R]):
    """One call in a worker.

    Args:
        call: The call; marks its reads in the given `Reading`.
        deadline: Its deadline.
        late: The result in place of a read that did not end by then, from the error that the read gives.
    """

    def __init__(self, call: Callable[[Reading], R], deadline: Deadline, late: Callable[[XrayError], R]) -> None:
        self.deadline = deadline
        self.future: Future[R] = Future()
        self._call = call
        self._late = late
        self._reading = Reading()
        self._lock = threading.Lock()

    def done(self) -> bool:
        """True if the result is there."""
        return self.future.done()

    def run(self) -> bool:
        """Carry the call out. False if it was abandoned meanwhile, so that its result is not wanted."""
        try:
            result = self._call(self._reading)
        except BaseException as err:  # handed to the thread that waits, which raises it
            with self._lock:
                if in_time := not self.done():
                    self.future.set_exception(err)
            return in_time
        return self._finish(result)

    def abandon_if_late(self) -> bool:
        """Abandon a read that did not end in time. True if that was done."""
        work = self._reading.work
        if work is None or not work.deadline.passed or self.done():
            return False
        return self._finish(self._late(work.late()))

    def _finish(self, result: R) -> bool:
        with self._lock:
            if self.done():
                return False
            self.future.set_result(result)
            return True


class Workers(Generic[R]):
    """A pool of daemon threads, each started when no other is idle.

    A read from a network drive that has gone away can be neither timed nor interrupted, so its worker is abandoned:
    another takes its place, and it ends whenever the read does. It does not keep the interpreter alive.

    Args:
        limit: Maximum number of workers, not counting abandoned ones.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._waiting = 0
        self._tasks: deque[Task[R]] = deque()
        self._closed = False
        self._changed = threading.Condition()

    @property
    def idle(self) -> int:
        """Number of workers that wait for a task."""
        return self._waiting

    def submit(self, task: Task[R]) -> Task[R]:
        """Carry out a task as soon as a worker is idle, and return it."""
        with self._changed:
            self._tasks.append(task)
            if start := len(self._tasks) > self._waiting and self._count < self._limit:
                self._count += 1
            self._changed.notify()
        if start:
            threading.Thread(target=self._work, name="xray-client-worker", daemon=True).start()
        return task

    def wait(self, tasks: Sequence[Task[R]]) -> None:
        """Wait for one of these to be done, at most half a second; abandon those that read for too long."""
        left = min(task.deadline.remaining for task in tasks)
        wait([task.future for task in tasks], min(max(left, _GRACE), _PIECE), FIRST_COMPLETED)
        for task in tasks:
            if task.abandon_if_late():
                with self._changed:
                    self._count -= 1

    def close(self) -> None:
        """Start no further task; end each worker after its task, without waiting."""
        with self._changed:
            self._closed = True
            self._tasks.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while (task := self._next()) is not None:
            if not task.run():
                return  # abandoned: another worker has taken this one's place
            del task  # an idle worker keeps no image

    def _next(self) -> Task[R] | None:
        with self._changed:
            self._waiting += 1
            while not self._tasks and not self._closed:
                self._changed.wait()
            self._waiting -= 1
            return self._tasks.popleft() if self._tasks else None

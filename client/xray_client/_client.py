"""The client for threads: one channel to the served model, shared by all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any

from xray_client._calls.operations import Operations, check_priority
from xray_client._imaging.preprocessing import Preprocessing
from xray_client._imaging.reader import ImageSource
from xray_client._transports.sync import Transport
from xray_client._transports.workers import Reading, Task, Workers

from ._batch import Window, check_many
from ._config import TLS, Priority, Settings
from ._exceptions import XrayError
from ._models import Failure, ModelInfo, Prediction
from .contract import MODEL_NAME

DEFAULT_URL = "127.0.0.1:8001"
DEFAULT_TIMEOUT = 10.0


class XrayClient:
    """Classifies chest radiographs on a Triton server.

    Keep one client and share it between threads: each client opens a connection of its own, at its first call.

    Args:
        url: "host:port" of Triton's gRPC service; several as "host1:8001,host2:8001" or "dns:///name:8001": requests
            go to each in turn, and on to the next if one fails.
        model: Name of the served model.
        model_version: Version to ask for; "" = the one that the server serves.
        timeout: Seconds that a whole call may take, reading the file and retries included; above 0, at most a day. A
            call may have another one.
        attempt_timeout: Seconds after which a server that does not answer is given up on and the request sent again,
            twice at most. None = what is left of `timeout`, divided by the servers that are still to be asked.
        retries: Maximum number of times that a request which failed for a passing reason is sent again, with growing
            pauses. None = until the timeout where the server has answered before, else twice; 0 = never. A request that
            the server may have been working on when it failed is sent again twice at most.
        tls: TLS of the connection; None = no TLS.
        token: Function that returns the bearer token, called when it is needed and once a minute, in another thread.
            The token is sent over TLS or to this machine only, and shown nowhere.
        headers: Further headers, such as those of Triton's restricted protocols. Shown nowhere.
        isolate: Decode every image in a process of its own, so that one which crashes its codec fails alone; for
            services that take images from strangers. False = only images of more than 20 megapixels, which a thread
            could not leave at the deadline. Not on Windows.

    Attributes:
        settings: The validated configuration; tokens and headers are not shown in its repr.

    Raises:
        ValueError: An argument that cannot work.

    Example:
        >>> with XrayClient() as client:                       # doctest: +SKIP
        ...     print(client.classify("chest.png"))
        chest.png: Normal, probability of Pneumonia 0.031, novelty 0.42 (medclip version 1, 9.8 ms)
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        model: str = MODEL_NAME,
        model_version: str = "",
        timeout: float = DEFAULT_TIMEOUT,
        attempt_timeout: float | None = None,
        retries: int | None = None,
        tls: TLS | None = None,
        token: Callable[[], str] | None = None,
        headers: Mapping[str, str] | None = None,
        isolate: bool = False,
    ) -> None:
        self.url = url
        self.model = model
        self.model_version = model_version
        self.timeout = timeout
        self.settings = settings = Settings(
            url, model, model_version, timeout, retries, tls, token, dict(headers or {}), attempt_timeout, isolate
        )
        self._operations = Operations(settings)
        self._transport = Transport(settings)

    def __enter__(self) -> XrayClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"XrayClient({self.url!r}, model={self.model!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Its settings alone, so that a spawned process connects by itself; headers go along as they are.
        return partial(type(self), **self.settings.arguments()), ()

    def close(self) -> None:
        """Close the connection. Calls under way in other threads end with a `RuntimeError`."""
        self._transport.close()

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the served model; fetched from the server once, then remembered."""
        return self._transport.run(self._operations.preprocessing())

    def check(self, *, timeout: float | None = None) -> None:
        """Raise the reason why `classify` would fail now; return if it would not.

        Asks for readiness and then for the answer to a drawn picture, with the priority of STAT; it is not counted
        among the radiographs that the server has answered.

        Args:
            timeout: Seconds that this call may take; None = the client's.

        Raises:
            ServerError: The server or the model cannot be used.
            ProtocolMismatch: The model's images cannot be prepared here.
        """
        self._transport.run(self._operations.check(timeout))

    def health(self, *, timeout: float | None = None) -> bool:
        """Return True if `classify` would work now, and False instead of raising, within the timeout.

        Args:
            timeout: As for `check`.
        """
        try:
            self.check(timeout=timeout)
        except (XrayError, RuntimeError):  # RuntimeError: this client is closed
            return False
        return True

    def info(self, *, timeout: float | None = None) -> ModelInfo:
        """Return the server's present description of the model; raises as `check` does.

        Args:
            timeout: As for `check`.
        """
        return self._transport.run(self._operations.info(timeout))

    def classify(
        self,
        source: ImageSource,
        *,
        heatmap: bool = True,
        priority: Priority | None = None,
        traceparent: str | None = None,
        timeout: float | None = None,
    ) -> Prediction:
        """Classify one radiograph.

        Args:
            source: Path, bytes, binary file object, grey array (h, w) of uint8 or uint16, PIL image; or an image that
                `load_radiograph` prepared with this client's `preprocessing`, uint8 (1, size, size).
            heatmap: Ask for the heatmap as well; it costs a few hundred bytes.
            priority: "stat" goes before "routine" in the server's queue, where the model has such levels.
            traceparent: Trace that this call is a part of, as W3C Trace Context writes it; None = one of its own.
            timeout: Seconds that this call may take, reading the file and retries included; None = the client's.

        Raises:
            ImageError: The image cannot be read, not in time either, or is not a single grey radiograph.
            ServerError: The server could not answer; `DeadlineExceeded` after `timeout` seconds in all.
            ProtocolMismatch: The answer breaks the contract, or an image prepared beforehand does not fit the model.
            ValueError: An argument that cannot work.
            RuntimeError: This client is closed.
        """
        deadline = self._operations.deadline(timeout)
        steps = self._operations.classify(
            source, heatmap=heatmap, priority=priority, traceparent=traceparent, deadline=deadline
        )
        return self._transport.run(steps)

    def classify_many(
        self,
        sources: Iterable[ImageSource],
        *,
        max_in_flight: int = 8,
        ordered: bool = True,
        heatmap: bool = True,
        priority: Priority | None = None,
        timeout: float | None = None,
    ) -> Generator[Prediction | Failure, None, None]:
        """Classify many radiographs: one answer for each, as they become ready.

        Lazy and bounded: no more than `max_in_flight` images are taken from `sources`, decoded or sent ahead of the
        one that is awaited. A bad image, or a server that fails, gives a `Failure` in that image's place.

        Args:
            sources: Any number of images as `classify` takes them, also a generator.
            max_in_flight: Images being read or sent at a time, 1 or more.
            ordered: In the order of the images; False = each as soon as it is there.
            heatmap: As for `classify`.
            priority: As for `classify`.
            timeout: Seconds that each image may take; None = the client's.

        Raises:
            TypeError, ValueError: At once, for an argument that cannot work.
            RuntimeError: This client is closed.
        """
        check_many(sources, max_in_flight)
        check_priority(priority)
        self._operations.deadline(timeout)  # raises now if it cannot work

        def task(source: ImageSource) -> Task[Prediction | Failure]:
            started, deadline = time.perf_counter(), self._operations.deadline(timeout)

            def failure(error: XrayError) -> Failure:
                return self._operations.failure(source, error, started)

            def call(reading: Reading) -> Prediction | Failure:
                steps = self._operations.classify(
                    source, heatmap=heatmap, priority=priority, traceparent=None, deadline=deadline
                )
                try:
                    return self._transport.run(steps, reading)
                except XrayError as err:
                    return failure(err)

            return Task(call, deadline, failure)

        return _answers(task, iter(sources), max_in_flight, ordered)


def _answers(
    task: Callable[[ImageSource], Task[Prediction | Failure]],
    sources: Iterator[ImageSource],
    max_in_flight: int,
    ordered: bool,
) -> Generator[Prediction | Failure, None, None]:
    window: Window[Task[Prediction | Failure]] = Window(max_in_flight, ordered=ordered)
    broken: Exception | None = None
    workers: Workers[Prediction | Failure] = Workers(max_in_flight)
    try:
        while True:
            try:
                source = next(sources)
            except StopIteration:
                break
            except Exception as err:  # the caller's generator broke: answer what it gave, then raise its error
                broken = err
                break
            window.add(workers.submit(task(source)))
            while (done := window.take()) or window.full:
                if done:
                    yield done.future.result()
                else:
                    workers.wait(window.awaited())
        while window:
            if done := window.take():
                yield done.future.result()
            else:
                workers.wait(window.awaited())
        if broken is not None:
            raise broken
    finally:
        # A caller who stops early does not wait for answers that nobody wants.
        workers.close()

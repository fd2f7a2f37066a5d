"""The client: one channel to one served model, shared by as many threads as you like."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import BinaryIO, TypeGuard, cast

import numpy as np
import numpy.typing as npt

from ._answers import check_answer
from ._deadline import Deadline, read_within
from ._errors import ImageError, PreprocessingMismatch, ServerNotReady, XrayError
from ._images import ImageSource, describe_source, load_radiograph, read_bytes
from ._preprocessing import Preprocessing
from ._records import ServedRecords
from ._results import Failure, ModelInfo, Prediction, Timing
from ._transport import Transport
from .contract import DECISION, FINDINGS, HEATMAP, MODEL_NAME, NOVELTY, PROBABILITY

DEFAULT_URL = "127.0.0.1:8001"
DEFAULT_TIMEOUT = 10.0
_LONGEST_TIMEOUT = 86_400.0


class XrayClient:
    """Classifies chest radiographs on a Triton server.

    Keep one and share it between threads: each opens a connection of its own, at the first call.

    Args:
        url: "host:port" of Triton's gRPC service.
        model: Name of the served model.
        model_version: Version to ask for; "" = the one that the server serves.
        timeout: Seconds that a whole call may take, reading the file included; above 0, at most a day.

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
    ) -> None:
        if not 0 < timeout <= _LONGEST_TIMEOUT:
            raise ValueError(f"timeout {timeout!r} is not a number of seconds above 0, at most a day")
        self.url = url
        self.model = model
        self.model_version = model_version
        self.timeout = timeout
        self._transport = Transport(url, model, model_version)
        self._records = ServedRecords(self._transport, model_version)

    def __enter__(self) -> XrayClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"XrayClient({self.url!r}, model={self.model!r})"

    def close(self) -> None:
        """Close the connection. Calls under way in other threads end with a `RuntimeError`."""
        self._transport.close()

    @property
    def preprocessing(self) -> Preprocessing:
        """How the served model wants its images prepared; asked of the server once, then remembered."""
        return self._records.current(Deadline(self.timeout))

    def check(self) -> None:
        """Raise the reason why `classify` would fail now; return where it would not.

        Raises:
            ServerError: The server or the model cannot be used.
            ProtocolMismatch: The model's images cannot be prepared here.
        """
        deadline = Deadline(self.timeout)
        if not self._transport.server_ready(deadline):
            raise self._not_ready("server")
        # Before the model's readiness, for which a model that does not exist is merely not ready.
        self._transport.preprocessing(self.model_version, deadline)
        if not self._transport.model_ready(deadline):
            raise self._not_ready("model")

    def health(self) -> bool:
        """Whether `classify` would work now. Answers False instead of raising, within the timeout."""
        try:
            self.check()
        except (XrayError, RuntimeError):  # RuntimeError: this client is closed
            return False
        return True

    def info(self) -> ModelInfo:
        """What the server says of the model now; raises as `check` does."""
        return self._transport.info(Deadline(self.timeout))

    def classify(self, source: ImageSource, *, heatmap: bool = True) -> Prediction:
        """Classify one radiograph.

        Args:
            source: Path, bytes, binary file object, grey array (h, w) of uint8 or uint16, PIL image; or an image that
                `load_radiograph` prepared with this client's `preprocessing`, uint8 (1, size, size).
            heatmap: Ask for the heatmap as well; it costs a few hundred bytes.

        Raises:
            ImageError: The image cannot be read, not in time either, or is not a single grey radiograph.
            ServerError: The server could not answer; `DeadlineExceeded` after `timeout` seconds in all.
            ProtocolMismatch: The answer breaks the contract, or an image prepared beforehand does not fit the model.
            RuntimeError: This client is closed.
        """
        started = time.perf_counter()
        prepare_s = server_s = 0.0
        file = _file_of(source)
        deadline = Deadline(self.timeout)
        asked = (PROBABILITY, DECISION, HEATMAP, NOVELTY) if heatmap else (PROBABILITY, DECISION, NOVELTY)
        record = self._records.current(deadline)
        if hasattr(source, "read"):  # can be read once only, but perhaps has to be prepared twice
            file_object = cast(BinaryIO, source)
            source = read_within(deadline, lambda: _read_once(file_object), source=describe_source(file_object))
        for _ in range(2):
            before = time.perf_counter()
            image = self._prepare(source, record, deadline)
            between = time.perf_counter()
            answer = self._transport.infer(image, asked, deadline)
            prepare_s += between - before
            server_s += time.perf_counter() - between
            served = self._records.of_version(answer.model_version, deadline)
            if served == record:
                values = check_answer(answer.outputs, asked, self._transport.mismatch)
                return Prediction(
                    file=file,
                    finding=FINDINGS[values.decision],
                    probability=values.probability,
                    decision=values.decision,
                    novelty=values.novelty,
                    heatmap=values.heatmap,
                    model=self.model,
                    model_version=answer.model_version,
                    milliseconds=1000 * (time.perf_counter() - started),
                    timing=Timing(prepare_ms=1000 * prepare_s, server_ms=1000 * server_s),
                    preprocessing=record,
                )
            # Another version answered than the image was prepared for: its answer counts for nothing.
            if _is_prepared(source):
                break
            record = served
        again = "prepare the image again with this client's `preprocessing`" if _is_prepared(source) else "try again"
        raise PreprocessingMismatch(
            f"version {answer.model_version} of the model wants its images prepared as {served.to_json()}",
            remedy=again,
            source=self._transport.source,
        )

    def classify_many(
        self, sources: Iterable[ImageSource], *, max_in_flight: int = 8, heatmap: bool = True
    ) -> Generator[Prediction | Failure, None, None]:
        """Classify many radiographs: one answer for each, in their order, as they become ready.

        Lazy and bounded: no more than `max_in_flight` images are taken from `sources`, decoded or sent ahead of the
        one that is awaited. A bad image, or a server that fails, gives a `Failure` in that image's place.

        Args:
            sources: What `classify` takes, any number of them, also a generator.
            max_in_flight: Images being read or sent at a time, 1 or more.
            heatmap: As for `classify`.

        Raises:
            TypeError, ValueError: At once, for an argument that cannot work.
            RuntimeError: This client is closed.
        """
        if isinstance(sources, str | bytes | os.PathLike | np.ndarray):
            raise TypeError("classify_many takes several radiographs; for one there is classify")
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight {max_in_flight!r} is below 1")
        return self._answer_in_order(iter(sources), max_in_flight, heatmap)

    def _answer_in_order(
        self, sources: Iterator[ImageSource], max_in_flight: int, heatmap: bool
    ) -> Generator[Prediction | Failure, None, None]:
        waiting: deque[Future[Prediction | Failure]] = deque()
        broken: Exception | None = None
        pool = ThreadPoolExecutor(max_in_flight, thread_name_prefix="xray-client")
        try:
            while True:
                try:
                    source = next(sources)
                except StopIteration:
                    break
                except Exception as err:  # the caller's generator broke: answer what it gave, then say so
                    broken = err
                    break
                waiting.append(pool.submit(self._answer, source, heatmap))
                while waiting and (len(waiting) >= max_in_flight or waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
            if broken is not None:
                raise broken
        finally:
            # A caller who stops early does not wait for answers that nobody wants.
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, source: ImageSource, heatmap: bool) -> Prediction | Failure:
        started = time.perf_counter()
        try:
            return self.classify(source, heatmap=heatmap)
        except XrayError as err:
            _forget_frames(err)
            return Failure(_file_of(source), err, self.model, 1000 * (time.perf_counter() - started))

    def _not_ready(self, what: str) -> ServerNotReady:
        return ServerNotReady(
            f"the {what} says that it is not ready",
            remedy="try again in a moment, or see the server's log",
            source=self._transport.source,
        )

    def _prepare(self, source: ImageSource, record: Preprocessing, deadline: Deadline) -> npt.NDArray[np.uint8]:
        if _is_prepared(source):
            if source.shape != record.shape:
                raise PreprocessingMismatch(
                    f"an image prepared as {source.shape}, but the model takes {record.shape}",
                    remedy="prepare it with this client's `preprocessing`",
                    source=self._transport.source,
                )
            return source
        if isinstance(source, np.ndarray):  # nothing to wait for, so no thread
            return load_radiograph(source, record)
        return read_within(deadline, lambda: load_radiograph(source, record), source=describe_source(source))


def _is_prepared(source: ImageSource) -> TypeGuard[npt.NDArray[np.uint8]]:
    return isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim == 3 and source.shape[0] == 1


def _read_once(source: BinaryIO) -> bytes:
    try:
        return read_bytes(source)
    except ImageError as err:
        err.source = describe_source(source)
        raise


def _file_of(source: ImageSource) -> str | None:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None) or getattr(source, "filename", None)
    return name if isinstance(name, str) and name else None


def _forget_frames(error: BaseException | None) -> None:
    """Drop the tracebacks of an error that is kept: their frames hold the whole image in memory."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__

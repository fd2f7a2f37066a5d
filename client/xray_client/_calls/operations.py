"""What `XrayClient` and `AsyncXrayClient` do, written once and without waiting: see `_steps.py`."""

from __future__ import annotations

import os
import time
from typing import Any, BinaryIO, TypeGuard, cast

import numpy as np
import numpy.typing as npt

from xray_client._config import PRIORITIES, Priority, Settings
from xray_client._exceptions import ImageError, PreprocessingMismatch, ServerNotReady, XrayError
from xray_client._imaging.preprocessing import Preprocessing
from xray_client._imaging.reader import ImageSource, describe_source, load_radiograph, read_bytes
from xray_client._models import Failure, ModelInfo, Prediction, Timing
from xray_client.contract import DECISION, FINDINGS, HEATMAP, NOVELTY, PROBABILITY

from .answers import check_answer
from .deadline import Deadline
from .effects import Steps, T, Work
from .messages import Wire
from .preprocessing_cache import ServedRecords
from .retry import Errand, Requests


class Core:
    """The calls of a client, as steps.

    Args:
        settings: What the client was told.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._source = settings.source
        self._wire = Wire(settings.model, self._source)
        self._requests = Requests(settings)
        self._records = ServedRecords(settings.model_version, self._source)

    def classify(
        self, source: ImageSource, *, heatmap: bool, priority: Priority | None, traceparent: str | None
    ) -> Steps[Prediction]:
        """Read, prepare, ask, check."""
        if priority is not None and priority not in PRIORITIES:
            raise ValueError(f"priority {priority!r} is none of {', '.join(PRIORITIES)}")
        errand = Errand(Deadline(self._settings.timeout), traceparent)
        asked = (PROBABILITY, DECISION, HEATMAP, NOVELTY) if heatmap else (PROBABILITY, DECISION, NOVELTY)
        level = PRIORITIES[priority] if priority is not None else 0
        return self._signed(self._classify(source, asked, level, errand), errand, file_of(source))

    def preprocessing(self) -> Steps[Preprocessing]:
        """The record that images are prepared with."""
        errand = Errand(Deadline(self._settings.timeout))
        ask = self._asker(errand)
        return self._signed(self._records.current(ask, errand.deadline), errand)

    def check(self) -> Steps[None]:
        """Raise the reason why `classify` would fail now; nothing is tried twice."""
        errand = Errand(Deadline(self._settings.timeout), patient=False)
        return self._signed(self._check(errand), errand)

    def info(self) -> Steps[ModelInfo]:
        """What the server says of the model."""
        errand = Errand(Deadline(self._settings.timeout))
        return self._signed(self._info(errand), errand)

    def ready_request(self) -> Any:
        """Ask whether the server is ready."""
        return self._wire.server_ready()

    def failure(self, source: ImageSource, error: XrayError, started: float) -> Failure:
        """What `classify_many` answers in place of a prediction; `started` is of `time.perf_counter`."""
        _forget_frames(error)
        return Failure(file_of(source), error, self._settings.model, 1000 * (time.perf_counter() - started))

    def _classify(self, source: ImageSource, asked: tuple[str, ...], level: int, errand: Errand) -> Steps[Prediction]:
        started = time.perf_counter()
        prepare_s = server_s = 0.0
        attempts = 0
        file, deadline, ask = file_of(source), errand.deadline, self._asker(errand)
        record = yield from self._records.current(ask, deadline)
        if hasattr(source, "read"):  # can be read once only, but perhaps has to be prepared twice
            source = yield from _read_file_object(cast(BinaryIO, source), deadline)
        for _ in range(2):
            before = time.perf_counter()
            image = yield from self._prepare(source, record, deadline)
            between = time.perf_counter()
            request = self._wire.infer(
                image,
                asked,
                version=self._settings.model_version,
                request_id=errand.request_id,
                priority=level,
            )
            response = yield from self._requests.send("ModelInfer", request, errand)
            attempts += errand.attempts
            prepare_s += between - before
            server_s += time.perf_counter() - between
            outputs = self._wire.outputs(response, errand.request_id)
            version = response.model_version
            served = yield from self._records.of_version(version, ask, deadline)
            if served == record:
                values = check_answer(outputs, asked, self._wire.mismatch)
                return Prediction(
                    file=file,
                    finding=FINDINGS[values.decision],
                    probability=values.probability,
                    decision=values.decision,
                    novelty=values.novelty,
                    heatmap=values.heatmap,
                    model=self._settings.model,
                    model_version=version,
                    milliseconds=1000 * (time.perf_counter() - started),
                    timing=Timing(prepare_ms=1000 * prepare_s, server_ms=1000 * server_s, attempts=attempts),
                    preprocessing=record,
                    request_id=errand.request_id,
                )
            # Another version answered than the image was prepared for: its answer counts for nothing.
            if _is_prepared(source):
                break
            record = served
        again = "prepare the image again with this client's `preprocessing`" if _is_prepared(source) else "try again"
        raise PreprocessingMismatch(
            f"version {version} of the model wants its images prepared as {served.to_json()}",
            remedy=again,
            source=self._source,
        )

    def _prepare(self, source: ImageSource, record: Preprocessing, deadline: Deadline) -> Steps[npt.NDArray[np.uint8]]:
        if _is_prepared(source):
            if source.shape != record.shape:
                raise PreprocessingMismatch(
                    f"an image prepared as {source.shape}, but the model takes {record.shape}",
                    remedy="prepare it with this client's `preprocessing`",
                    source=self._source,
                )
            return source
        if isinstance(source, np.ndarray):  # nothing to wait for
            return load_radiograph(source, record)
        image: npt.NDArray[np.uint8] = yield Work(
            lambda: load_radiograph(source, record), deadline, lambda: deadline.unread(describe_source(source))
        )
        return image

    def _check(self, errand: Errand) -> Steps[None]:
        version = self._settings.model_version
        ready = yield from self._requests.send("ServerReady", self._wire.server_ready(), errand)
        if not ready.ready:
            raise self._not_ready("server")
        # Before the model's readiness, for which a model that does not exist is merely not ready.
        yield from self._asker(errand)(version)
        ready = yield from self._requests.send("ModelReady", self._wire.model_ready(version), errand)
        if not ready.ready:
            raise self._not_ready("model")

    def _info(self, errand: Errand) -> Steps[ModelInfo]:
        version = self._settings.model_version
        server = yield from self._requests.send("ServerMetadata", self._wire.server_metadata(), errand)
        model = yield from self._requests.send("ModelMetadata", self._wire.model_metadata(version), errand)
        config = yield from self._requests.send("ModelConfig", self._wire.config(version), errand)
        return self._wire.info(server, model, config)

    def _asker(self, errand: Errand) -> Any:
        """Asks the server for the record of a version, as a part of this errand."""

        def ask(version: str) -> Steps[Preprocessing]:
            response = yield from self._requests.send("ModelConfig", self._wire.config(version), errand)
            return self._wire.preprocessing(response)

        return ask

    def _signed(self, steps: Steps[T], errand: Errand, file: str | None = None) -> Steps[T]:
        """The same steps; an error says which call it came from."""
        try:
            return (yield from steps)
        except XrayError as err:
            if not err.source:
                err.source = self._source
            err.file, err.model, err.request_id = file, self._settings.model, errand.request_id
            if not isinstance(err, ImageError):
                err.attempts = errand.attempts
            raise

    def _not_ready(self, what: str) -> ServerNotReady:
        return ServerNotReady(
            f"the {what} says that it is not ready",
            remedy="try again in a moment, or see the server's log",
            source=self._source,
        )


def file_of(source: ImageSource) -> str | None:
    """Path of the file that a source stands for, where it has one."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None) or getattr(source, "filename", None)
    return name if isinstance(name, str) and name else None


def _is_prepared(source: ImageSource) -> TypeGuard[npt.NDArray[np.uint8]]:
    return isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim == 3 and source.shape[0] == 1


def _read_file_object(source: BinaryIO, deadline: Deadline) -> Steps[bytes]:
    def read() -> bytes:
        try:
            return read_bytes(source)
        except ImageError as err:
            err.source = describe_source(source)
            raise

    data: bytes = yield Work(read, deadline, lambda: deadline.unread(describe_source(source)))
    return data


def _forget_frames(error: BaseException | None) -> None:
    """Drop the tracebacks of an error that is kept: their frames hold the whole image in memory."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__

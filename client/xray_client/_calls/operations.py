"""The calls of `XrayClient` and `AsyncXrayClient`, written once and without waiting: see `effects.py`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import BinaryIO, TypeGuard, cast

import numpy as np
import numpy.typing as npt

from xray_client._config import PRIORITIES, Priority, Settings, check_timeout
from xray_client._exceptions import ImageError, PreprocessingMismatch, ServerNotReady, XrayError
from xray_client._imaging.preprocessing import Preprocessing
from xray_client._imaging.reader import ImageSource, describe_source, load_radiograph, read_bytes
from xray_client._models import Failure, ModelInfo, Prediction, Timing
from xray_client.contract import DECISION, FINDINGS, HEALTH_PREFIX, HEATMAP, NOVELTY, PROBABILITY

from .answers import check_answer
from .context import RequestContext
from .deadline import Deadline
from .effects import Steps, T, Work
from .messages import Messages
from .preprocessing_cache import Fetch, PreprocessingCache
from .reading import prepare_in_time
from .retry import RequestSender


class Operations:
    """The calls of a client, as steps.

    Args:
        settings: The client's configuration.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._source = settings.source
        self._messages = Messages(settings.model, self._source)
        self._requests = RequestSender(settings)
        self._cache = PreprocessingCache(settings.model_version, self._source)

    def classify(
        self,
        source: ImageSource,
        *,
        heatmap: bool,
        priority: Priority | None,
        traceparent: str | None,
        deadline: Deadline,
    ) -> Steps[Prediction]:
        """Read the image, prepare it, ask the server and check the answer."""
        check_priority(priority)
        context = RequestContext(deadline, traceparent)
        requested = (PROBABILITY, DECISION, HEATMAP, NOVELTY) if heatmap else (PROBABILITY, DECISION, NOVELTY)
        level = PRIORITIES[priority] if priority is not None else 0
        file = file_of(source)
        return self._annotate(self._classify(source, file, requested, level, context), context, file)

    def preprocessing(self) -> Steps[Preprocessing]:
        """Return the preprocessing for the next image."""
        context = RequestContext(self.deadline())
        return self._annotate(self._cache.current(self._fetch(context), context.deadline), context)

    def check(self, timeout: float | None = None) -> Steps[None]:
        """Raise the reason why `classify` would fail now; nothing is tried twice."""
        request_id = f"{HEALTH_PREFIX}{os.urandom(8).hex()}"
        context = RequestContext(self.deadline(timeout), retries=False, request_id=request_id)
        return self._annotate(self._check(context), context)

    def info(self, timeout: float | None = None) -> Steps[ModelInfo]:
        """Return the server's description of the model."""
        context = RequestContext(self.deadline(timeout))
        return self._annotate(self._info(context), context)

    def deadline(self, timeout: float | None = None) -> Deadline:
        """Start the clock of a call.

        Args:
            timeout: Seconds that it may take, above 0, at most a day; None = the client's.
        """
        if timeout is None:
            return Deadline(self._settings.timeout)
        check_timeout(timeout)
        return Deadline(timeout)

    def failure(self, source: ImageSource, error: XrayError, started: float) -> Failure:
        """The result of `classify_many` for an image that failed; `started` is of `time.perf_counter`."""
        _forget_frames(error)
        return Failure(file_of(source), error, self._settings.model, 1000 * (time.perf_counter() - started))

    def _classify(
        self, source: ImageSource, file: str | None, requested: tuple[str, ...], level: int, context: RequestContext
    ) -> Steps[Prediction]:
        started = time.perf_counter()
        prepare_s = server_s = 0.0
        attempts = 0
        fetch, deadline = self._fetch(context), context.deadline

        def late() -> XrayError:
            return self._describe(deadline.unread(describe_source(source)), context, file)

        preprocessing = yield from self._cache.current(fetch, deadline)
        original = source
        if hasattr(source, "read"):  # can be read once only, but perhaps has to be prepared twice
            original = yield from _read_file_object(cast(BinaryIO, source), deadline, late)
        for _ in range(2):
            before = time.perf_counter()
            image = yield from self._prepare(original, preprocessing, deadline, late)
            between = time.perf_counter()
            request = self._messages.infer(
                image,
                requested,
                version=self._settings.model_version,
                request_id=context.request_id,
                priority=level,
            )
            response = yield from self._requests.send("ModelInfer", request, context)
            attempts += context.attempts
            prepare_s += between - before
            server_s += time.perf_counter() - between
            outputs = self._messages.outputs(response, context.request_id)
            version = response.model_version
            served = yield from self._cache.of_version(version, fetch, deadline)
            if served == preprocessing:
                values = check_answer(outputs, requested, self._messages.mismatch)
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
                    preprocessing=preprocessing,
                    request_id=context.request_id,
                )
            # Another version answered than the image was prepared for: its answer counts for nothing.
            if _is_prepared(original):
                break
            preprocessing = served
        again = "prepare the image again with this client's `preprocessing`" if _is_prepared(original) else "try again"
        raise PreprocessingMismatch(
            f"version {version} of the model wants its images prepared as {served.to_json()}",
            remedy=again,
            source=self._source,
        )

    def _prepare(
        self, source: ImageSource, preprocessing: Preprocessing, deadline: Deadline, late: Callable[[], XrayError]
    ) -> Steps[npt.NDArray[np.uint8]]:
        if _is_prepared(source):
            if source.shape != preprocessing.shape:
                raise PreprocessingMismatch(
                    f"an image prepared as {source.shape}, but the model takes {preprocessing.shape}",
                    remedy="prepare it with this client's `preprocessing`",
                    source=self._source,
                )
            return source
        if isinstance(source, np.ndarray):  # nothing to wait for
            return load_radiograph(source, preprocessing)
        image: npt.NDArray[np.uint8] = yield Work(
            partial(prepare_in_time, source, preprocessing, deadline, late, isolate=self._settings.isolate),
            deadline,
            late,
            reading=True,
        )
        return image

    def _check(self, context: RequestContext) -> Steps[None]:
        version = self._settings.model_version
        ready = yield from self._requests.send("ServerReady", self._messages.server_ready(), context)
        if not ready.ready:
            raise self._not_ready("server")
        # Before the model's readiness, for which a model that does not exist is merely not ready.
        _, preprocessing = yield from self._fetch(context)(version)
        ready = yield from self._requests.send("ModelReady", self._messages.model_ready(version), context)
        if not ready.ready:
            raise self._not_ready("model")
        # A model whose process has died says that it is ready.
        requested = (PROBABILITY, DECISION, NOVELTY)
        ramp = np.linspace(0, 255, preprocessing.size).astype(np.uint8)
        request = self._messages.infer(
            np.broadcast_to(ramp, preprocessing.shape),
            requested,
            version=version,
            request_id=context.request_id,
            priority=PRIORITIES["stat"],
        )
        response = yield from self._requests.send("ModelInfer", request, context)
        check_answer(self._messages.outputs(response, context.request_id), requested, self._messages.mismatch)

    def _info(self, context: RequestContext) -> Steps[ModelInfo]:
        version = self._settings.model_version
        server = yield from self._requests.send("ServerMetadata", self._messages.server_metadata(), context)
        model = yield from self._requests.send("ModelMetadata", self._messages.model_metadata(version), context)
        config = yield from self._requests.send("ModelConfig", self._messages.config(version), context)
        return self._messages.info(server, model, config)

    def _fetch(self, context: RequestContext) -> Fetch:
        """Return a function that fetches the preprocessing of a version, as a part of this call."""

        def fetch(version: str) -> Steps[tuple[str, Preprocessing]]:
            response = yield from self._requests.send("ModelConfig", self._messages.config(version), context)
            return version or self._messages.only_version(response), self._messages.preprocessing(response)

        return fetch

    def _annotate(self, steps: Steps[T], context: RequestContext, file: str | None = None) -> Steps[T]:
        """Carry out the same steps; an error names the call that it came from."""
        try:
            return (yield from steps)
        except XrayError as err:
            self._describe(err, context, file)
            raise

    def _describe(self, error: XrayError, context: RequestContext, file: str | None) -> XrayError:
        if not error.source:
            error.source = self._source
        error.file, error.model, error.request_id = file, self._settings.model, context.request_id
        if not isinstance(error, ImageError):
            error.attempts = context.attempts
        return error

    def _not_ready(self, what: str) -> ServerNotReady:
        return ServerNotReady(
            f"the {what} says that it is not ready",
            remedy="try again in a moment, or see the server's log",
            source=self._source,
        )


def check_priority(priority: Priority | None) -> None:
    """Raise `ValueError` for a priority that is not one of `PRIORITIES`."""
    if priority is not None and priority not in PRIORITIES:
        raise ValueError(f"priority {priority!r} is none of {', '.join(PRIORITIES)}")


def file_of(source: ImageSource) -> str | None:
    """Return the path of the file behind a source, None for an image from memory."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None) or getattr(source, "filename", None)
    return name if isinstance(name, str) and name else None


def _is_prepared(source: ImageSource) -> TypeGuard[npt.NDArray[np.uint8]]:
    return isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim == 3 and source.shape[0] == 1


def _read_file_object(source: BinaryIO, deadline: Deadline, late: Callable[[], XrayError]) -> Steps[bytes]:
    def read() -> bytes:
        try:
            return read_bytes(source)
        except ImageError as err:
            err.source = describe_source(source)
            raise

    data: bytes = yield Work(read, deadline, late, reading=True)
    return data


def _forget_frames(error: BaseException | None) -> None:
    """Drop the tracebacks of an error that is kept: their frames hold the whole image in memory."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__

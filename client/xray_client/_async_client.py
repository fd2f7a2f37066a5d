"""The client for asyncio: the same calls, awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

from xray_client._calls.operations import Operations, check_priority
from xray_client._imaging.preprocessing import Preprocessing
from xray_client._imaging.reader import ImageSource
from xray_client._transports.asyncio import AsyncTransport

from ._batch import Window, check_many
from ._client import DEFAULT_TIMEOUT, DEFAULT_URL
from ._config import TLS, Priority, Settings
from ._exceptions import XrayError
from ._models import Failure, ModelInfo, Prediction
from .contract import MODEL_NAME


class AsyncXrayClient:
    """`XrayClient` for asyncio: the same arguments, calls and errors; each call is awaited.

    Images are read in threads of their own, so the event loop goes on meanwhile. One client works in several event
    loops, also at once in a thread each; each has connections of its own.

    Raises:
        ValueError: An argument that cannot work.

    Example:
        >>> async with AsyncXrayClient() as client:            # doctest: +SKIP
        ...     print(await client.classify("chest.png"))
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
        self._transport = AsyncTransport(settings)

    async def __aenter__(self) -> AsyncXrayClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncXrayClient({self.url!r}, model={self.model!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Its settings alone, so that a spawned process connects by itself; headers go along as they are.
        return partial(type(self), **self.settings.arguments()), ()

    async def close(self) -> None:
        """Close the connection. Calls under way in other tasks end with a `RuntimeError`."""
        await self._transport.close()

    async def preprocessing(self) -> Preprocessing:
        """Preprocessing of the served model; fetched from the server once, then remembered."""
        return await self._transport.run(self._operations.preprocessing())

    async def check(self, *, timeout: float | None = None) -> None:
        """See `XrayClient.check`."""
        await self._transport.run(self._operations.check(timeout))

    async def health(self, *, timeout: float | None = None) -> bool:
        """See `XrayClient.health`."""
        try:
            await self.check(timeout=timeout)
        except (XrayError, RuntimeError):  # RuntimeError: this client is closed
            return False
        return True

    async def info(self, *, timeout: float | None = None) -> ModelInfo:
        """See `XrayClient.info`."""
        return await self._transport.run(self._operations.info(timeout))

    async def classify(
        self,
        source: ImageSource,
        *,
        heatmap: bool = True,
        priority: Priority | None = None,
        traceparent: str | None = None,
        timeout: float | None = None,
    ) -> Prediction:
        """See `XrayClient.classify`."""
        deadline = self._operations.deadline(timeout)
        steps = self._operations.classify(
            source, heatmap=heatmap, priority=priority, traceparent=traceparent, deadline=deadline
        )
        return await self._transport.run(steps)

    def classify_many(
        self,
        sources: Iterable[ImageSource] | AsyncIterable[ImageSource],
        *,
        max_in_flight: int = 8,
        ordered: bool = True,
        heatmap: bool = True,
        priority: Priority | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Prediction | Failure, None]:
        """See `XrayClient.classify_many`; `async for` it. `sources` may be an asynchronous generator as well."""
        check_many(sources, max_in_flight)
        check_priority(priority)
        self._operations.deadline(timeout)  # raises now if it cannot work

        async def answer(source: ImageSource) -> Prediction | Failure:
            started = time.perf_counter()
            try:
                return await self.classify(source, heatmap=heatmap, priority=priority, timeout=timeout)
            except XrayError as err:
                return self._operations.failure(source, err, started)

        return _answers(answer, _one_by_one(sources), max_in_flight, ordered)


async def _one_by_one(sources: Iterable[ImageSource] | AsyncIterable[ImageSource]) -> AsyncIterator[ImageSource]:
    if isinstance(sources, AsyncIterable):
        async for source in sources:
            yield source
    else:
        for source in sources:
            yield source


async def _answers(
    answer: Callable[[ImageSource], Coroutine[Any, Any, Prediction | Failure]],
    sources: AsyncIterator[ImageSource],
    max_in_flight: int,
    ordered: bool,
) -> AsyncGenerator[Prediction | Failure, None]:
    window: Window[asyncio.Task[Prediction | Failure]] = Window(max_in_flight, ordered=ordered)
    broken: Exception | None = None
    try:
        while True:
            try:
                source = await anext(sources)
            except StopAsyncIteration:
                break
            except Exception as err:  # the caller's generator broke: answer what it gave, then raise its error
                broken = err
                break
            window.add(asyncio.create_task(answer(source)))
            await asyncio.sleep(0)  # let the others proceed
            while (done := window.take()) or window.full:
                if done:
                    yield done.result()
                else:
                    await asyncio.wait(window.awaited(), return_when=asyncio.FIRST_COMPLETED)
        while window:
            if done := window.take():
                yield done.result()
            else:
                await asyncio.wait(window.awaited(), return_when=asyncio.FIRST_COMPLETED)
        if broken is not None:
            raise broken
    finally:
        for task in window.all():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

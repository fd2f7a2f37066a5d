"""The transport for asyncio; imported only by its users, since asyncio takes 50 ms to import."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from xray_client._calls.deadline import in_the_background
from xray_client._calls.effects import Call, Effect, Pause, Steps, Work, drive_async
from xray_client._config import Settings

from .sync import CLOSED, CLOSED_MEANWHILE, Connection

T = TypeVar("T")


class _LoopConnection(Connection):
    """Channels and lock of one event loop; they work in no other."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.exclusive = asyncio.Lock()

    def mark_closed(self) -> None:
        """Let calls that are under way end with a `RuntimeError` of a closed client."""
        self._closed = True

    async def close(self) -> None:
        """Close the channels, in the loop that opened them."""
        for channel in self._channels:
            await channel.close()

    async def call(self, call: Call) -> Any:
        """Send a request, and give the response."""
        import grpc

        if self._closed:
            raise RuntimeError(CLOSED)
        stub = self._stub(call.server)
        try:
            return await getattr(stub, call.method)(call.request, timeout=call.timeout, metadata=call.metadata)
        except grpc.RpcError as err:
            raise self._failed(err) from err
        except asyncio.CancelledError as err:
            if self._closed:
                raise RuntimeError(CLOSED_MEANWHILE) from err
            raise
        except grpc.aio.UsageError as err:
            raise RuntimeError(CLOSED) from err

    def _stub(self, server: int) -> Any:
        from grpc import aio

        if server not in self._stubs or self._process != os.getpid():
            self._check_process()
            if server not in self._stubs:
                return self._open(aio, server)
        return self._stubs[server]


class AsyncTransport:
    """Carries steps out in the event loop that awaits them.

    Each loop has channels of its own, also where several run at once, in a thread each.

    Args:
        settings: The client's configuration.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._closed = False
        self._entering = threading.Lock()
        self._of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopConnection] = WeakKeyDictionary()

    async def close(self) -> None:
        """Close this loop's channels; calls under way, in this and in other loops, end with a `RuntimeError`."""
        with self._entering:
            self._closed = True
            connections = list(self._of_loop.values())
            own = self._of_loop.get(asyncio.get_running_loop())
        for connection in connections:
            connection.mark_closed()
        if own is not None:
            await own.close()

    async def run(self, steps: Steps[T]) -> T:
        """Carry out these steps."""
        return await drive_async(steps, self._perform)

    async def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, Call):
            return await self._connection().call(effect)
        if isinstance(effect, Work):
            future = in_the_background(effect.function)
            try:
                return await asyncio.wait_for(asyncio.wrap_future(future), effect.deadline.left())
            except (TimeoutError, asyncio.TimeoutError) as err:
                if future.done() and not future.cancelled():  # the function's own TimeoutError
                    raise
                raise effect.late() from err
        if isinstance(effect, Pause):
            return await asyncio.sleep(effect.seconds)
        exclusive = self._connection().exclusive
        try:
            await asyncio.wait_for(exclusive.acquire(), effect.deadline.left())
        except (TimeoutError, asyncio.TimeoutError) as err:
            raise effect.late() from err
        try:
            return await self.run(effect.steps())
        finally:
            exclusive.release()

    def _connection(self) -> _LoopConnection:
        loop = asyncio.get_running_loop()
        with self._entering:
            if self._closed:
                raise RuntimeError(CLOSED)
            connection = self._of_loop.get(loop)
            if connection is None:
                connection = self._of_loop[loop] = _LoopConnection(self._settings)
            return connection

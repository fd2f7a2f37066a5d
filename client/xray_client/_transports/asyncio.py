"""The transport for asyncio; imported only by its users, since asyncio takes 50 ms to import."""

from __future__ import annotations

import asyncio
import os
from typing import Any, TypeVar

from xray_client._calls.deadline import in_the_background
from xray_client._calls.effects import Call, Effect, Pause, Steps, Work, drive_async
from xray_client._config import Settings

from .sync import CLOSED, CLOSED_MEANWHILE, Connection

T = TypeVar("T")


class AsyncTransport(Connection):
    """Carries steps out in the event loop that awaits them; each loop has channels of its own.

    Args:
        settings: The client's configuration.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._exclusive = asyncio.Lock()

    async def close(self) -> None:
        """Close the channels; calls under way in other tasks end with a `RuntimeError`."""
        self._closed = True
        if self._loop is asyncio.get_running_loop():
            for channel in self._channels:
                await channel.close()

    async def run(self, steps: Steps[T]) -> T:
        """Carry out these steps."""
        return await drive_async(steps, self._perform)

    async def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, Call):
            return await self._call(effect)
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
        self._enter_loop()
        try:
            await asyncio.wait_for(self._exclusive.acquire(), effect.deadline.left())
        except (TimeoutError, asyncio.TimeoutError) as err:
            raise effect.late() from err
        try:
            return await self.run(effect.steps())
        finally:
            self._exclusive.release()

    def _enter_loop(self) -> None:
        """Forget the channels and the lock of an event loop that has ended."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._exclusive = loop, asyncio.Lock()
            self._forget()

    async def _call(self, call: Call) -> Any:
        import grpc

        if self._closed:
            raise RuntimeError(CLOSED)
        self._enter_loop()
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

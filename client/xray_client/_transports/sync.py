"""The transport for threads: a gRPC channel to each server, opened at the first call and shared by all threads.

It carries out the effects of `_calls/effects.py`; only this module and `asyncio.py` talk to gRPC. With a channel for
each server, gRPC looks each name up anew when a connection breaks, and checks each certificate for its own host.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any, TypeVar

from xray_client._calls.deadline import in_the_background
from xray_client._calls.effects import Call, CallFailed, Effect, Pause, Steps, Work, drive
from xray_client._config import Settings
from xray_client.channel import channel_credentials, channel_options

from .workers import Reading

T = TypeVar("T")

_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", 64 * 2**20),
    ("grpc.max_receive_message_length", 64 * 2**20),
    # A peer that vanished silently is noticed within 40 s, so the next call opens a new connection.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Pings without calls make Triton hang up ("too_many_pings").
    ("grpc.keepalive_permit_without_calls", 0),
    # gRPC waits up to 2 minutes before it tries a failed server again, and fails every call until then.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # In spite of its name, how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # By default a container that comes back under another address is not looked for again for half a minute.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # Its own retries know the status alone, and that says too little: see grpc_errors.py.
    ("grpc.enable_retries", 0),
)
# Behind one name: round-robin over the addresses; one that fails is left out until it can be reached again.
_ROUND_ROBIN = ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}))

CLOSED = "this client is closed"
CLOSED_MEANWHILE = "this client was closed while it waited for an answer"

# The process in which gRPC was first used here.
_first_used_in: int | None = None

_log = logging.getLogger("xray_client")


class Connection:
    """Base of both transports: opens the channels and names their failures."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._endpoints = settings.endpoints
        self._closed = False
        self._process: int | None = None
        self._channels: list[Any] = []
        self._stubs: dict[int, Any] = {}  # of Triton's service, by the server's index

    def _options(self) -> list[tuple[str, Any]]:
        options: list[tuple[str, Any]] = list(_CHANNEL_OPTIONS)
        if self._endpoints.several:
            options.append(_ROUND_ROBIN)
        return options + channel_options(self._endpoints, self._settings.tls)

    def _open(self, kind: Any, server: int) -> Any:
        """Open a channel to one server by `grpc` or `grpc.aio`, and return the stub over it."""
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        target = self._endpoints.targets[server]
        _log.debug("opening a channel to %s, %s", target, "without TLS" if self._settings.tls is None else "with TLS")
        options: dict[str, Any] = {"options": self._options(), "compression": grpc.Compression.NoCompression}
        credentials = channel_credentials(self._settings.tls)
        if credentials is None:
            channel = kind.insecure_channel(target, **options)
        else:
            channel = kind.secure_channel(target, credentials, **options)
        self._channels.append(channel)
        self._stubs[server] = stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return stub

    def _forget(self) -> None:
        """Drop the channels of another process, which cannot be used here."""
        if self._channels:
            _log.debug("connecting anew: another process than before")
        self._channels, self._stubs = [], {}

    def _check_process(self) -> None:
        """Refuse a forked process, into which gRPC's threads do not follow: a call there would wait for ever."""
        global _first_used_in
        here = os.getpid()
        _first_used_in = _first_used_in or here
        supported = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower() in ("1", "true", "yes")
        if here != _first_used_in and not supported:
            raise RuntimeError(
                "this process was forked from one that had used gRPC, which does not work: start it by 'spawn', use "
                "the client only after the fork, or set GRPC_ENABLE_FORK_SUPPORT=1 before Python starts"
            )
        if here != self._process:
            self._forget()
        self._process = here

    def _failed(self, err: Any) -> Exception:
        if self._closed:
            return RuntimeError(CLOSED_MEANWHILE)
        code = err.code()
        return CallFailed(code.name if code is not None else "", err.details() or "")


class Transport(Connection):
    """Carries steps out in the calling thread.

    Args:
        settings: The client's configuration.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._opening = threading.Lock()
        self._exclusive = threading.Lock()

    def close(self) -> None:
        """Close the channels; calls under way in other threads end with a `RuntimeError`."""
        self._closed = True
        if self._process == os.getpid():
            for channel in self._channels:
                channel.close()

    def run(self, steps: Steps[T], reading: Reading | None = None) -> T:
        """Carry out these steps.

        Args:
            steps: The steps.
            reading: Given by a worker that may be abandoned while it reads: reads run in its own thread and are marked
                here. None = each read runs in a thread of its own, which is abandoned at the deadline.
        """
        return drive(steps, self._perform if reading is None else partial(self._perform_in_worker, reading))

    def response_headers(self) -> dict[str, str]:
        """Return the headers of the first server's answer, even of a refusal; empty if there was none."""
        import grpc
        from tritonclient.grpc import service_pb2

        call: Any
        try:
            request = service_pb2.ServerReadyRequest()
            _, call = self._stub(0).ServerReady.with_call(request, timeout=self._settings.timeout)
        except grpc.RpcError as err:
            call = err
        return {str(name): str(value) for name, value in call.initial_metadata() or ()}

    def _perform_in_worker(self, reading: Reading, effect: Effect) -> Any:
        if not (isinstance(effect, Work) and effect.reading):
            return self._perform(effect)
        effect.deadline.left()
        reading.work = effect
        try:
            result = effect.function()
        finally:
            reading.work = None
        if effect.deadline.passed:
            raise effect.late()
        return result

    def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, Call):
            return self._call(effect)
        if isinstance(effect, Work):
            future = in_the_background(effect.function)
            try:
                return future.result(effect.deadline.left())
            except FutureTimeout as err:
                if future.done():  # the function's own TimeoutError
                    raise
                raise effect.late() from err
        if isinstance(effect, Pause):
            return time.sleep(effect.seconds)
        if not self._exclusive.acquire(timeout=effect.deadline.left()):
            raise effect.late()
        try:
            return self.run(effect.steps())
        finally:
            self._exclusive.release()

    def _call(self, call: Call) -> Any:
        import grpc

        stub = self._stub(call.server)
        try:
            return getattr(stub, call.method)(call.request, timeout=call.timeout, metadata=call.metadata)
        except grpc.RpcError as err:
            raise self._failed(err) from err
        except ValueError as err:
            if self._closed:  # grpc's error for a channel that was closed a moment ago
                raise RuntimeError(CLOSED) from err
            raise

    def _stub(self, server: int) -> Any:
        import grpc

        if server not in self._stubs or self._process != os.getpid() or self._closed:
            with self._opening:
                if self._closed:
                    raise RuntimeError(CLOSED)
                self._check_process()
                if server not in self._stubs:
                    return self._open(grpc, server)
        return self._stubs[server]

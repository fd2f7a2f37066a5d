"""The one place that talks to gRPC, with `_async_transport.py`: a channel to the servers, used by threads.

It carries out the steps of `_steps.py`. A channel is safe to share, and worth sharing; it is opened at the first call.
"""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from ._deadline import in_the_background
from ._settings import Settings
from ._steps import Alone, Call, CallFailed, Pause, Work, drive

_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", 64 * 2**20),
    ("grpc.max_receive_message_length", 64 * 2**20),
    # A peer that vanished without a word is noticed within 40 s, so the next call opens a new connection.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Pings without calls make Triton hang up ("too_many_pings").
    ("grpc.keepalive_permit_without_calls", 0),
    # gRPC waits up to 2 minutes before it tries a lost server again, and fails every call until then.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # In spite of its name, how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # Its own retries know the status alone, and that says too little: see _status.py.
    ("grpc.enable_retries", 0),
)
# Requests go to each server in turn; one that is lost is left out until it can be reached again.
_SPREAD = ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}))

CLOSED = "this client is closed"
CLOSED_MEANWHILE = "this client was closed while it waited for an answer"

# The process in which gRPC was first used here.
_first_used_in: int | None = None


class Connection:
    """What both transports share: how a channel is opened, and what a failure is called."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._endpoints = settings.endpoints
        self._closed = False
        self._process: int | None = None

    def _options(self) -> list[tuple[str, Any]]:
        options: list[tuple[str, Any]] = list(_CHANNEL_OPTIONS)
        if self._endpoints.several:
            options.append(_SPREAD)
        if self._endpoints.loopback:
            # Where http_proxy is set, gRPC would send even these calls through the proxy.
            options.append(("grpc.enable_http_proxy", 0))
        if self._settings.tls is not None:
            name = self._settings.tls.server_name or self._endpoints.server_name()
            if name:
                options.append(("grpc.ssl_target_name_override", name))
        return options

    def _channel(self, kind: Any, target: str, **more: Any) -> Any:
        """A channel of `grpc` or `grpc.aio`."""
        import grpc

        options: dict[str, Any] = {"options": self._options(), "compression": grpc.Compression.NoCompression, **more}
        if self._settings.tls is None:
            return kind.insecure_channel(target, **options)
        return kind.secure_channel(target, grpc.ssl_channel_credentials(*self._settings.tls.read()), **options)

    def _check_process(self) -> None:
        """gRPC's threads do not follow into a forked process: a call there would wait for ever."""
        global _first_used_in
        here = os.getpid()
        _first_used_in = _first_used_in or here
        supported = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower() in ("1", "true", "yes")
        if here != _first_used_in and not supported:
            raise RuntimeError(
                "this process was forked from one that had used gRPC, which does not work: start it by 'spawn', use "
                "the client only after the fork, or set GRPC_ENABLE_FORK_SUPPORT=1 before Python starts"
            )
        self._process = here

    def _failed(self, err: Any) -> Exception:
        if self._closed:
            return RuntimeError(CLOSED_MEANWHILE)
        code = err.code()
        return CallFailed(code.name if code is not None else "", err.details() or "")


TOO_LATE = ("DEADLINE_EXCEEDED", "Deadline Exceeded")


class Transport(Connection):
    """Carries steps out in the thread that calls.

    Args:
        settings: The client's.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._stub: Any = None
        self._open_channel: Any = None
        self._opening = threading.Lock()
        self._alone = threading.Lock()

    def close(self) -> None:
        """Close the channel; calls under way in other threads end with a `RuntimeError`."""
        self._closed = True
        if self._open_channel is not None and self._process == os.getpid():
            self._open_channel.close()

    def run(self, steps: Any) -> Any:
        """Carry out these steps."""
        return drive(steps, self._perform)

    def _perform(self, step: Any) -> Any:
        if isinstance(step, Call):
            return self._call(step)
        if isinstance(step, Work):
            future = in_the_background(step.function)
            try:
                return future.result(step.deadline.left())
            except FutureTimeout as err:
                if future.done():  # the function's own TimeoutError
                    raise
                raise step.late() from err
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if isinstance(step, Alone):
            if not self._alone.acquire(timeout=step.deadline.left()):
                raise step.late()
            try:
                return self.run(step.steps())
            finally:
                self._alone.release()
        raise AssertionError(f"no such step: {step!r}")

    def _call(self, call: Call) -> Any:
        import grpc

        if self._closed:
            raise RuntimeError(CLOSED)
        if self._stub is None or self._process != os.getpid():
            self._open(call.timeout)
        try:
            return getattr(self._stub, call.method)(call.request, timeout=call.timeout, metadata=call.metadata)
        except grpc.RpcError as err:
            raise self._failed(err) from err
        except ValueError as err:
            if self._closed:  # grpc's word for a channel that was closed a moment ago
                raise RuntimeError(CLOSED) from err
            raise

    def _open(self, timeout: float) -> None:
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        if not self._opening.acquire(timeout=timeout):
            raise CallFailed(*TOO_LATE)
        try:
            if self._stub is not None and self._process == os.getpid():
                return
            self._check_process()
            if self._endpoints.needs_lookup:
                try:
                    target = in_the_background(self._endpoints.target).result(timeout)
                except FutureTimeout as err:
                    raise CallFailed(*TOO_LATE) from err
            else:
                target = self._endpoints.target()
            self._open_channel = self._channel(grpc, target)
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._open_channel)
        finally:
            self._opening.release()

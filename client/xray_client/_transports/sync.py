"""The one place that talks to gRPC, with `_async_transport.py`: a channel to each server, used by threads.

It carries out the steps of `_steps.py`. A channel is safe to share, and worth sharing; it is opened at the first call.
A channel of its own lets gRPC look each name up anew when its connection is lost, and check each certificate for it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from xray_client._calls.deadline import in_the_background
from xray_client._calls.effects import Alone, Call, CallFailed, Pause, Work, drive
from xray_client._config import Settings

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
    # By default a container that comes back under another address is not looked for again for half a minute.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # Its own retries know the status alone, and that says too little: see _status.py.
    ("grpc.enable_retries", 0),
)
# Behind one name: requests go to each address in turn; one that is lost is left out until it can be reached again.
_SPREAD = ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}))

CLOSED = "this client is closed"
CLOSED_MEANWHILE = "this client was closed while it waited for an answer"

# The process in which gRPC was first used here.
_first_used_in: int | None = None


class Connection:
    """What both transports share: how channels are opened, and what a failure is called."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._endpoints = settings.endpoints
        self._closed = False
        self._process: int | None = None
        self._channels: list[Any] = []
        self._stubs: dict[int, Any] = {}  # of Triton's service, by the server's place

    def _options(self) -> list[tuple[str, Any]]:
        options: list[tuple[str, Any]] = list(_CHANNEL_OPTIONS)
        if self._endpoints.several:
            options.append(_SPREAD)
        if self._endpoints.loopback:
            # Where http_proxy is set, gRPC would send even these calls through the proxy.
            options.append(("grpc.enable_http_proxy", 0))
        if self._settings.tls is not None and self._settings.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self._settings.tls.server_name))
        return options

    def _open(self, kind: Any, server: int) -> Any:
        """The stub of one server over a new channel of `grpc` or `grpc.aio`."""
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        target = self._endpoints.targets[server]
        options: dict[str, Any] = {"options": self._options(), "compression": grpc.Compression.NoCompression}
        if self._settings.tls is None:
            channel = kind.insecure_channel(target, **options)
        else:
            channel = kind.secure_channel(target, grpc.ssl_channel_credentials(*self._settings.tls.read()), **options)
        self._channels.append(channel)
        self._stubs[server] = stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return stub

    def _forget(self) -> None:
        """The channels of another process or event loop are of no use here."""
        self._channels, self._stubs = [], {}

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
        if here != self._process:
            self._forget()
        self._process = here

    def _failed(self, err: Any) -> Exception:
        if self._closed:
            return RuntimeError(CLOSED_MEANWHILE)
        code = err.code()
        return CallFailed(code.name if code is not None else "", err.details() or "")


class Transport(Connection):
    """Carries steps out in the thread that calls.

    Args:
        settings: The client's.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._opening = threading.Lock()
        self._alone = threading.Lock()

    def close(self) -> None:
        """Close the channels; calls under way in other threads end with a `RuntimeError`."""
        self._closed = True
        if self._process == os.getpid():
            for channel in self._channels:
                channel.close()

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

        stub = self._stub(call.server)
        try:
            return getattr(stub, call.method)(call.request, timeout=call.timeout, metadata=call.metadata)
        except grpc.RpcError as err:
            raise self._failed(err) from err
        except ValueError as err:
            if self._closed:  # grpc's word for a channel that was closed a moment ago
                raise RuntimeError(CLOSED) from err
            raise

    def headers(self, method: str, request: Any) -> dict[str, str]:
        """The headers of the first server's answer, be it a refusal; empty where none came."""
        import grpc

        call: Any
        try:
            _, call = getattr(self._stub(0), method).with_call(request, timeout=self._settings.timeout)
        except grpc.RpcError as err:
            call = err
        return {str(name): str(value) for name, value in call.initial_metadata() or ()}

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

"""The one place that talks to tritonclient: a channel, a deadline on every call, and typed errors.

One `Transport` is one gRPC channel. It is safe to share between threads, and worth sharing.
"""

from __future__ import annotations

import itertools
import re
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ._deadline import Deadline
from ._errors import PreprocessingMismatch, ProtocolMismatch, ServerError
from ._preprocessing import Preprocessing
from ._results import ModelInfo, Tensor
from ._status import translate
from .contract import IMAGE, PREPROCESSING_PARAMETER

T = TypeVar("T")

_LOOPBACK = ("localhost", "127.", "[::1]")

# tritonclient's defaults come with "never a keepalive" and, as soon as one of these is given, with 4 MB messages.
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
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One response as it came, unchecked: every output with its batch dimension."""

    outputs: dict[str, npt.NDArray[Any]]
    model_version: str


class Transport:
    """The calls that the client makes, for one model on one server.

    Args:
        url: "host:port" of Triton's gRPC service.
        model: Name of the served model.
        model_version: Version to ask for; "" = the server chooses.

    Raises:
        ValueError: The url is not "host:port".
    """

    def __init__(self, url: str, model: str, model_version: str) -> None:
        self.source = f"{model} at {url}"
        options = list(_CHANNEL_OPTIONS)
        if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+):\d{1,5}", url):
            raise ValueError(f"the server's address {url!r} is not host:port, such as 127.0.0.1:8001")
        if url.startswith(_LOOPBACK):
            # Where http_proxy is set, gRPC would send even these calls through the proxy.
            options.append(("grpc.enable_http_proxy", 0))
        # 0.2 s that `import xray_client` does not have to take.
        import tritonclient.grpc as triton
        from tritonclient.utils import InferenceServerException

        self._triton = triton
        self._failed = InferenceServerException
        self._model = model
        self._model_version = model_version
        self._closed = False
        self._requests = itertools.count(1)
        self._prefix = uuid.uuid4().hex[:8]
        self._client = triton.InferenceServerClient(url, channel_args=options)

    def close(self) -> None:
        """Close the channel; calls under way in other threads end with an error."""
        self._closed = True
        self._client.close()

    def infer(self, image: npt.NDArray[np.uint8], outputs: tuple[str, ...], deadline: Deadline) -> Answer:
        """Send one prepared image, uint8 (1, size, size), and ask for these outputs."""
        tensor = self._triton.InferInput(IMAGE, [1, *image.shape], "UINT8")
        tensor.set_data_from_numpy(image[None])
        request_id = f"{self._prefix}-{next(self._requests)}"
        result = self._call(
            lambda timeout: self._client.infer(
                self._model,
                [tensor],
                model_version=self._model_version,
                request_id=request_id,
                outputs=[self._triton.InferRequestedOutput(name) for name in outputs],
                client_timeout=timeout,
            ),
            deadline,
        )
        response = result.get_response()
        if response.id != request_id:
            raise self.mismatch(f"the answer is to request {response.id!r}, not to {request_id!r}")
        try:
            arrays = {output.name: result.as_numpy(output.name) for output in response.outputs}
        except (ValueError, TypeError, IndexError, struct.error) as err:
            raise self.mismatch(f"an output cannot be decoded: {err}") from err
        return Answer(arrays, response.model_version)

    def preprocessing(self, model_version: str, deadline: Deadline) -> Preprocessing:
        """The preprocessing record in the served model's parameters."""
        config = self._call(
            lambda timeout: self._client.get_model_config(self._model, model_version, client_timeout=timeout), deadline
        ).config
        if config.max_batch_size < 1:
            raise self.mismatch("the model takes no batch dimension")
        if PREPROCESSING_PARAMETER not in config.parameters:
            raise PreprocessingMismatch(
                f"the served model does not say how its images are prepared: no parameter {PREPROCESSING_PARAMETER!r}",
                remedy="publish it with this package's build step, or ask for another model",
                source=self.source,
            )
        try:
            return Preprocessing.from_json(config.parameters[PREPROCESSING_PARAMETER].string_value)
        except PreprocessingMismatch as err:
            err.source = self.source
            raise

    def info(self, deadline: Deadline) -> ModelInfo:
        """Names, versions, tensors and preprocessing of the model as served now."""
        server = self._call(lambda timeout: self._client.get_server_metadata(client_timeout=timeout), deadline)
        model = self._call(
            lambda timeout: self._client.get_model_metadata(self._model, self._model_version, client_timeout=timeout),
            deadline,
        )
        return ModelInfo(
            model=model.name,
            versions=tuple(model.versions),
            platform=model.platform,
            server=f"{server.name} {server.version}".strip(),
            preprocessing=self.preprocessing(self._model_version, deadline),
            inputs=tuple(Tensor(t.name, t.datatype, tuple(t.shape)) for t in model.inputs),
            outputs=tuple(Tensor(t.name, t.datatype, tuple(t.shape)) for t in model.outputs),
        )

    def server_ready(self, deadline: Deadline) -> bool:
        """Whether the server says that it is ready."""
        return bool(self._call(lambda timeout: self._client.is_server_ready(client_timeout=timeout), deadline))

    def model_ready(self, deadline: Deadline) -> bool:
        """Whether the server says that the model is ready."""
        return bool(
            self._call(
                lambda timeout: self._client.is_model_ready(self._model, self._model_version, client_timeout=timeout),
                deadline,
            )
        )

    def mismatch(self, message: str) -> ProtocolMismatch:
        """The error for an answer that breaks the contract."""
        return ProtocolMismatch(message, remedy="publish the model with this package's build step", source=self.source)

    def _call(self, call: Callable[[float], T], deadline: Deadline) -> T:
        try:
            if self._closed:
                raise RuntimeError("this client is closed")
            return call(deadline.left())
        except ServerError as err:  # the deadline passed before the call
            err.source = err.source or self.source
            raise
        except self._failed as err:
            if self._closed:
                raise RuntimeError("this client was closed while it waited for an answer") from err
            status = (err.status() or "").removeprefix("StatusCode.")
            details = err.message() or ""
            if status == "DEADLINE_EXCEEDED" and details == "Deadline Exceeded":  # ours, not that of a proxy
                raise deadline.exceeded(self.source) from err
            raise translate(status, details, source=self.source) from err
        except ValueError as err:
            if self._closed:  # grpc's word for a channel that was closed a moment ago
                raise RuntimeError("this client is closed") from err
            raise

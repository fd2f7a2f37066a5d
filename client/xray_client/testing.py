"""A fake server for tests: real gRPC, the contract of the served model, and faults on demand; no Triton, no model.

>>> import numpy as np
>>> from xray_client import XrayClient
>>> from xray_client.testing import FakeServer, outputs
>>> radiograph = np.tile(np.arange(200, dtype=np.uint8), (300, 1))
>>> with FakeServer() as server, XrayClient(server.url) as client:
...     server.answer = lambda image: outputs(probability=0.9)
...     print(client.classify(radiograph, priority="stat").finding, server.requests[0].priority)
Pneumonia 1

Needs no more than the base install. Nothing of it is imported by `xray_client` itself.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as pb

from xray_client._imaging.preprocessing import Preprocessing

from .contract import (
    DECISION,
    HEALTH_PREFIX,
    HEATMAP,
    IMAGE,
    MODEL_NAME,
    NOVELTY,
    PREPROCESSING_PARAMETER,
    PROBABILITY,
)

__all__ = ["FakeServer", "Outputs", "ReceivedRequest", "mean_grey", "outputs"]

# The outputs of the contract for one image, by name, each with its batch dimension.
Outputs: TypeAlias = "dict[str, npt.NDArray[Any]]"

_SERVICE = "inference.GRPCInferenceService"
_DATATYPES = {"float32": "FP32", "float64": "FP64", "int32": "INT32", "int64": "INT64"}


def outputs(
    probability: float,
    *,
    decision: int | None = None,
    novelty: float = 0.5,
    heatmap: npt.ArrayLike | None = None,
) -> Outputs:
    """Make the outputs of one answer.

    Args:
        probability: Probability of Pneumonia, 0 to 1.
        decision: Index into `xray_client.FINDINGS`; None = 1 (Pneumonia) if the probability is above 0.5, else 0.
        novelty: Distance from the training radiographs; above 1.0 = unlike all of them.
        heatmap: Evidence of each patch (h, w); None = (7, 7), the probability spread evenly.
    """
    evidence = np.full((7, 7), probability / 49) if heatmap is None else np.asarray(heatmap)
    return {
        PROBABILITY: np.array([[1 - probability, probability]], np.float32),
        DECISION: np.array([[int(probability > 0.5) if decision is None else decision]], np.int32),
        HEATMAP: evidence.astype(np.float32)[None],
        NOVELTY: np.array([[novelty]], np.float32),
    }


def mean_grey(image: npt.NDArray[np.uint8]) -> Outputs:
    """Answer with the mean grey level / 255 as the probability, so that an answer tells which image it belongs to."""
    return outputs(float(image.mean()) / 255)


@dataclass(frozen=True)
class ReceivedRequest:
    """One inference request, as it arrived.

    Attributes:
        message: The protobuf message, `ModelInferRequest`.
        headers: The gRPC metadata that came with it.
    """

    message: Any = field(repr=False)
    headers: dict[str, str] = field(repr=False)

    @property
    def request_id(self) -> str:
        """The request's id."""
        return str(self.message.id)

    @property
    def model_version(self) -> str:
        """The version that was asked for; "" = the server chooses."""
        return str(self.message.model_version)

    @property
    def image(self) -> npt.NDArray[np.uint8]:
        """The prepared image, uint8 (1, size, size)."""
        pixels = np.frombuffer(self.message.raw_input_contents[0], np.uint8)
        return pixels.reshape(tuple(self.message.inputs[0].shape)[1:])

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the requested outputs."""
        return tuple(output.name for output in self.message.outputs)

    @property
    def priority(self) -> int:
        """1 = "stat", 2 = "routine", 0 = none was given."""
        return int(self.message.parameters["priority"].uint64_param) if "priority" in self.message.parameters else 0

    @property
    def timeout(self) -> float:
        """Seconds for which the caller waits, as the server was told."""
        return float(self.message.parameters["timeout"].int64_param) / 1e6


class FakeServer:
    """A server of the contract on this machine, from `start` or `with` until `stop`.

    Its attributes may be changed at any time, also while requests are under way.

    Args:
        port: Port to listen on; 0 = a free one.
        host: Address to listen on.
        model: Name of the served model.
        record_requests: Keep each request in `requests`.

    Attributes:
        url: "host:port", once started.
        version: The version that answers.
        preprocessing: Preprocessing by version: a `Preprocessing`, the raw text of the parameter, or None for none.
        version_named: The configuration's version policy names the version that answers, instead of "the latest".
        parameters: Further parameters of the configuration.
        max_batch_size: The configuration's `max_batch_size`.
        headers: Headers of the answer to a readiness request, such as a proxy adds.
        ready: The answer to readiness requests.
        delay: Seconds before each answer to an inference.
        answer: The model: prepared image, uint8 (1, size, size), to outputs.
        alter: Called with the requested outputs before they are sent, to change or remove some; None = not at all.
        answer_id: Makes the answer's request id from the request's.
        requests: The inference requests that arrived, without those of health checks.
        calls: Number of calls by method, such as "ModelConfig".
        most_in_flight: Largest number of inferences at a time.
    """

    def __init__(
        self, port: int = 0, *, host: str = "127.0.0.1", model: str = MODEL_NAME, record_requests: bool = True
    ) -> None:
        self.url = f"{host}:{port}"
        self.version = "1"
        self.preprocessing: dict[str, Preprocessing | str | None] = {"1": Preprocessing()}
        self.version_named = False
        self.parameters: dict[str, str] = {}
        self.max_batch_size = 32
        self.headers: dict[str, str] = {}
        self.ready = True
        self.delay = 0.0
        self.answer: Callable[[npt.NDArray[np.uint8]], Outputs] = mean_grey
        self.alter: Callable[[Outputs], object] | None = None
        self.answer_id: Callable[[str], str] = lambda request_id: request_id
        self.requests: list[ReceivedRequest] = []
        self.calls: Counter[str] = Counter()
        self.most_in_flight = 0
        self._model = model
        self._host = host
        self._record = record_requests
        self._failure: tuple[Any, str] | None = None
        self._failures_left: int | None = None
        self._in_flight = 0
        self._lock = threading.Lock()
        self._server: Any = None

    def __enter__(self) -> FakeServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"FakeServer({self.url!r})"

    def start(self) -> None:
        """Listen; raises `RuntimeError` if the port is taken."""
        methods = {
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelInfer": self._model_infer,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._counted(name, method),
                request_deserializer=getattr(pb, f"{name}Request").FromString,
                response_serializer=getattr(pb, f"{name}Response").SerializeToString,
            )
            for name, method in methods.items()
        }
        self._server = grpc.server(ThreadPoolExecutor(32, thread_name_prefix="fake-server"))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        port = self._server.add_insecure_port(self.url)
        self.url = f"{self._host}:{port}"
        self._server.start()

    def stop(self) -> None:
        """Stop listening; calls under way break off."""
        self._server.stop(None).wait()

    def serve(self, version: str, preprocessing: Preprocessing | str | None) -> None:
        """Let another version answer from now on, with its preprocessing."""
        self.preprocessing[version] = preprocessing
        self.version = version

    def fail(self, status: str, details: str = "", *, times: int | None = None) -> None:
        """Fail the next inferences.

        Args:
            status: Name of the gRPC status, such as "UNAVAILABLE".
            details: The message that comes with it, such as "Socket closed".
            times: Number of inferences to fail; None = all until `recover`.
        """
        with self._lock:
            self._failure, self._failures_left = (grpc.StatusCode[status], details), times

    def recover(self) -> None:
        """Fail no more inferences."""
        with self._lock:
            self._failure = None

    def _counted(self, name: str, method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def call(request: Any, context: Any) -> Any:
            with self._lock:
                self.calls[name] += 1
            return method(request, context)

        return call

    def _server_ready(self, request: Any, context: Any) -> Any:
        context.send_initial_metadata(tuple(self.headers.items()))
        return pb.ServerReadyResponse(ready=self.ready)

    def _model_ready(self, request: Any, context: Any) -> Any:
        return pb.ModelReadyResponse(ready=self.ready and request.name == self._model)

    def _server_metadata(self, request: Any, context: Any) -> Any:
        return pb.ServerMetadataResponse(name="fake", version="2.51.0")

    def _model_metadata(self, request: Any, context: Any) -> Any:
        version = self._find(request.name, request.version, context)
        served = self.preprocessing[version]
        size = served.size if isinstance(served, Preprocessing) else 224
        response = pb.ModelMetadataResponse(name=request.name, versions=list(self.preprocessing), platform="fake")
        response.inputs.add(name=IMAGE, datatype="UINT8", shape=[-1, 1, size, size])
        response.outputs.add(name=PROBABILITY, datatype="FP32", shape=[-1, 2])
        return response

    def _model_config(self, request: Any, context: Any) -> Any:
        version = self._find(request.name, request.version, context)
        response = pb.ModelConfigResponse()
        config = response.config
        config.name, config.max_batch_size = request.name, self.max_batch_size
        if self.version_named:
            config.version_policy.specific.versions.append(int(version))
        else:
            config.version_policy.latest.num_versions = 1
        for name, value in self.parameters.items():
            config.parameters[name].string_value = value
        served = self.preprocessing[version]
        if served is not None:
            text = served.to_json() if isinstance(served, Preprocessing) else served
            config.parameters[PREPROCESSING_PARAMETER].string_value = text
        return response

    def _model_infer(self, request: Any, context: Any) -> Any:
        received = ReceivedRequest(request, dict(context.invocation_metadata()))
        with self._lock:
            if self._record and not request.id.startswith(HEALTH_PREFIX):
                self.requests.append(received)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            return self._infer(received, context)
        finally:
            with self._lock:
                self._in_flight -= 1

    def _infer(self, received: ReceivedRequest, context: Any) -> Any:
        request = received.message
        self._find(request.model_name, request.model_version, context)
        if self.delay:
            ended = threading.Event()
            if context.add_callback(ended.set):  # also where the caller gives up or the server stops
                ended.wait(self.delay)
        if failure := self._next_failure():
            context.abort(*failure)
        answer = self.answer(received.image)
        answer = {name: answer[name] for name in received.outputs}
        if self.alter is not None:
            self.alter(answer)
        response = pb.ModelInferResponse(
            model_name=request.model_name, model_version=self.version, id=self.answer_id(request.id)
        )
        for name, array in answer.items():
            response.outputs.add(name=name, datatype=_DATATYPES[str(array.dtype)], shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response

    def _next_failure(self) -> tuple[Any, str] | None:
        with self._lock:
            if self._failures_left == 0:
                return None
            if self._failure is not None and self._failures_left is not None:
                self._failures_left -= 1
            return self._failure

    def _find(self, model: str, version: str, context: Any) -> str:
        """Return the version that is meant; break off with Triton's words if it is not served."""
        if model != self._model or (version or self.version) not in self.preprocessing:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{model}' is not found")
        return version or self.version

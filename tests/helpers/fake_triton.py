"""A stand-in for Triton, in this process, over NVIDIA's own service definition: it makes faults on demand.

No real server can be asked for a NaN, for another request's answer or for a preprocessing that changes under way. What
a real server does when nothing is wrong, and when it is killed, is tested against a real one in tests/serving.

Its model is the mean of the image: probability of Pneumonia = mean grey level / 255. So an answer tells which image it
belongs to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from xray_client import Preprocessing

DATATYPES = {"float32": "FP32", "float64": "FP64", "int32": "INT32", "int64": "INT64"}

STRETCH = Preprocessing(geometry="stretch").to_json()
NEWER = Preprocessing().to_json().replace('"version": 1', '"version": 2')


def grey(level: int, shape: tuple[int, int] = (224, 224)) -> np.ndarray:
    """A radiograph of one grey level, which the model answers with that level / 255."""
    return np.full(shape, level, np.uint8)


def levels(request: pb.ModelInferRequest) -> np.ndarray:
    """The image that a request carried, (1, 1, size, size)."""
    return np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(request.inputs[0].shape)


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Start it with `with FakeTriton() as triton`; change its attributes to change what it does.

    Attributes:
        version: The version that answers.
        records: What the parameter "preprocessing" says, by version; None = the parameter is missing.
        headers: What is sent before readiness, as a proxy adds it.
        parameters: What else the configuration says, by name.
        ready: What readiness says.
        delay: Seconds before each answer.
        fail: Status and words to fail each inference with, or None.
        failures: How many inferences still fail; None = all.
        spoil: Changes the outputs before they are sent, or None.
        echo: The request id to answer with, from the one that came.
        requests: The inference requests that arrived.
        metadata: The headers that came with each of them.
        most_in_flight: The most requests that were being answered at a time.
    """

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        self._address = host, port
        self.version = "1"
        self.records: dict[str, str | None] = {"1": Preprocessing().to_json()}
        self.parameters: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.ready = True
        self.delay = 0.0
        self.fail: tuple[grpc.StatusCode, str] | None = None
        self.failures: int | None = None
        self.metadata: list[dict[str, str]] = []
        self.spoil: Callable[[dict[str, np.ndarray]], Any] | None = None
        self.echo: Callable[[str], str] = lambda request_id: request_id
        self.requests: list[pb.ModelInferRequest] = []
        self.config_calls = 0
        self.max_batch_size = 32
        self.most_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()

    def __enter__(self) -> FakeTriton:
        self._server = grpc.server(ThreadPoolExecutor(32))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        host, port = self._address
        self.url = f"{host}:{self._server.add_insecure_port(f'{host}:{port}')}"
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Go away, without waiting for the calls under way."""
        self.delay = 0.0
        self._server.stop(None).wait()

    def ServerReady(self, request, context):  # noqa: N802
        context.send_initial_metadata(tuple(self.headers.items()))
        return pb.ServerReadyResponse(ready=self.ready)

    def ModelReady(self, request, context):  # noqa: N802
        return pb.ModelReadyResponse(ready=self.ready and request.name == "medclip")

    def ServerMetadata(self, request, context):  # noqa: N802
        return pb.ServerMetadataResponse(name="fake", version="2.51.0")

    def ModelMetadata(self, request, context):  # noqa: N802
        self._find(request.name, request.version, context)
        response = pb.ModelMetadataResponse(name=request.name, versions=list(self.records), platform="fake")
        response.inputs.add(name="image", datatype="UINT8", shape=[-1, 1, 224, 224])
        response.outputs.add(name="probability", datatype="FP32", shape=[-1, 2])
        return response

    def ModelConfig(self, request, context):  # noqa: N802
        self.config_calls += 1
        version = self._find(request.name, request.version, context)
        response = pb.ModelConfigResponse()
        response.config.name = request.name
        response.config.max_batch_size = self.max_batch_size
        for name, value in self.parameters.items():
            response.config.parameters[name].string_value = value
        record = self.records[version]
        if record is not None:
            response.config.parameters["preprocessing"].string_value = record
        return response

    def ModelInfer(self, request, context):  # noqa: N802
        with self._lock:
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            return self._infer(request, context)
        finally:
            with self._lock:
                self._in_flight -= 1

    def _infer(self, request, context):
        self._find(request.model_name, request.model_version, context)
        started = time.monotonic()
        while time.monotonic() - started < self.delay and context.is_active():
            time.sleep(0.002)
        with self._lock:
            failing = self.fail if self.failures != 0 else None
            if failing and self.failures:
                self.failures -= 1
        if failing:
            context.abort(*failing)
        probability = np.float32(levels(request).mean() / 255)
        outputs = {
            "probability": np.array([[1 - probability, probability]], np.float32),
            "decision": np.array([[int(probability > 0.5)]], np.int32),
            "heatmap": np.full((1, 7, 7), probability / 49, np.float32),
            "novelty": np.array([[0.5]], np.float32),
        }
        outputs = {output.name: outputs[output.name] for output in request.outputs}
        if self.spoil is not None:
            self.spoil(outputs)
        response = pb.ModelInferResponse(
            model_name=request.model_name, model_version=self.version, id=self.echo(request.id)
        )
        for name, array in outputs.items():
            response.outputs.add(name=name, datatype=DATATYPES[str(array.dtype)], shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response

    def _find(self, model: str, version: str, context) -> str:
        if model != "medclip" or (version or self.version) not in self.records:
            words = f"Request for unknown model: '{model}' is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, words)
        return version or self.version

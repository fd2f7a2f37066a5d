"""Messages of Triton's service (KServe's inference protocol, version 2), made and read without sending anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from xray_client._exceptions import OutputMismatch, PreprocessingMismatch, ProtocolMismatch
from xray_client._imaging.preprocessing import Preprocessing
from xray_client._models import ModelCard, ModelInfo, Tensor
from xray_client.contract import CARD_PARAMETER, IMAGE, PREPROCESSING_PARAMETER

_DTYPES = {"BOOL": np.dtype(bool)} | {f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)}
_DTYPES |= {f"{sign}INT{bits}": np.dtype(f"{sign}int{bits}".lower()) for sign in ("", "U") for bits in (8, 16, 32, 64)}
_PUBLISH = "publish the model with this package's build step"


def set_queue_timeout(request: Any, seconds: float) -> None:
    """Tell the server how long the caller waits for this image: it may drop a request that has waited longer."""
    request.parameters["timeout"].int64_param = max(1, int(1e6 * seconds))


class Messages:
    """Messages to and from one model.

    Args:
        model: Its name.
        source: The model and its server, as errors name them.
    """

    def __init__(self, model: str, source: str) -> None:
        # 0.2 s that `import xray_client` does not have to take.
        from tritonclient.grpc import service_pb2

        self._pb = service_pb2
        self._model = model
        self._source = source

    def infer(
        self,
        image: npt.NDArray[np.uint8],
        outputs: tuple[str, ...],
        *,
        version: str,
        request_id: str,
        priority: int,
    ) -> Any:
        """Make a request for these outputs of one prepared image, uint8 (1, size, size).

        Args:
            image: The image.
            outputs: Names of the outputs.
            version: Version to ask for; "" = the server chooses.
            request_id: The id that the answer must carry.
            priority: 1 before 2; 0 = the model's default.
        """
        request = self._pb.ModelInferRequest(model_name=self._model, model_version=version, id=request_id)
        request.inputs.add(name=IMAGE, datatype="UINT8", shape=(1, *image.shape))
        request.raw_input_contents.append(image.tobytes())
        for name in outputs:
            request.outputs.add(name=name)
        if priority:
            request.parameters["priority"].uint64_param = priority
        return request

    def outputs(self, response: Any, request_id: str) -> dict[str, npt.NDArray[Any]]:
        """Return every output of a response with its batch dimension, unchecked and read-only."""
        if response.id != request_id:
            raise self.mismatch(f"the answer is to request {response.id!r}, not to {request_id!r}")
        if len(response.raw_output_contents) != len(response.outputs):
            raise self.mismatch("the answer does not hold as many outputs as it says", OutputMismatch)
        arrays = {}
        for output, data in zip(response.outputs, response.raw_output_contents, strict=True):
            try:
                arrays[output.name] = np.frombuffer(data, _DTYPES[output.datatype]).reshape(tuple(output.shape))
            except (ValueError, KeyError) as err:
                raise self.mismatch(f"output {output.name!r} cannot be decoded: {err}", OutputMismatch) from err
        return arrays

    def config(self, version: str) -> Any:
        """Make a request for the model's configuration."""
        return self._pb.ModelConfigRequest(name=self._model, version=version)

    def preprocessing(self, response: Any) -> Preprocessing:
        """Read the preprocessing from a configuration."""
        config = response.config
        if config.max_batch_size < 1:
            raise self.mismatch("the model takes no batch dimension")
        if PREPROCESSING_PARAMETER not in config.parameters:
            raise PreprocessingMismatch(
                f"the served model does not say how its images are prepared: no parameter {PREPROCESSING_PARAMETER!r}",
                remedy="publish it with this package's build step, or ask for another model",
                source=self._source,
            )
        try:
            return Preprocessing.from_json(config.parameters[PREPROCESSING_PARAMETER].string_value)
        except PreprocessingMismatch as err:
            err.source = self._source
            raise

    def only_version(self, response: Any) -> str:
        """Return the only version that the policy allows, to which the configuration belongs; "" if several."""
        allowed = response.config.version_policy.specific.versions
        return str(allowed[0]) if len(allowed) == 1 else ""

    def server_metadata(self) -> Any:
        """Make a request for the server's name and version."""
        return self._pb.ServerMetadataRequest()

    def model_metadata(self, version: str) -> Any:
        """Make a request for the model's versions and tensors."""
        return self._pb.ModelMetadataRequest(name=self._model, version=version)

    def info(self, server: Any, model: Any, config: Any) -> ModelInfo:
        """Combine the three responses."""
        parameters = {name: entry.string_value for name, entry in config.config.parameters.items()}
        card = ModelCard.from_json(parameters.get(CARD_PARAMETER, ""))
        shown = {PREPROCESSING_PARAMETER} if card is None else {PREPROCESSING_PARAMETER, CARD_PARAMETER}
        return ModelInfo(
            model=model.name,
            versions=tuple(model.versions),
            platform=model.platform,
            server=f"{server.name} {server.version}".strip(),
            preprocessing=self.preprocessing(config),
            inputs=tuple(Tensor(t.name, t.datatype, tuple(t.shape)) for t in model.inputs),
            outputs=tuple(Tensor(t.name, t.datatype, tuple(t.shape)) for t in model.outputs),
            parameters=tuple((name, parameters[name]) for name in sorted(parameters.keys() - shown)),
            card=card,
        )

    def server_ready(self) -> Any:
        """Make a request for the server's readiness."""
        return self._pb.ServerReadyRequest()

    def model_ready(self, version: str) -> Any:
        """Make a request for the model's readiness."""
        return self._pb.ModelReadyRequest(name=self._model, version=version)

    def mismatch(self, message: str, kind: type[ProtocolMismatch] = ProtocolMismatch) -> ProtocolMismatch:
        """Make the error for an answer that breaks the contract."""
        return kind(message, remedy=_PUBLISH, source=self._source)

"""Triton Python backend: encoded PNG, JPEG or DICOM bytes -> the image that `medclip` takes.

The reader and the preprocessing are the client's own, so `xray_client` must be importable here. How radiographs are
prepared stands in one place only, the configuration of `medclip` that this server serves; it is read when this model is
loaded. Every request is judged alone: what is wrong with one says nothing about those that Triton batched it with.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from xray_client import ImageError, Preprocessing, XrayError, contract, load_radiograph

_MIB = 2**20


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args):
        """Read how `medclip` wants its radiographs; refuses to load where that is not known."""
        config = json.loads(args["model_config"])
        parameters = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        served = Path(args["model_repository"]).parent / contract.MODEL_NAME / parameters["medclip_configuration"]
        try:
            self.preprocessing = _preprocessing(served)
        except (OSError, KeyError, text_format.ParseError, XrayError) as err:
            raise pb_utils.TritonModelException(
                f"{served} does not say how radiographs are prepared: {err}: publish a version"
            ) from err
        self.most_bytes = int(parameters["max_encoded_mib"]) * _MIB
        # Pillow lets go of Python's lock while it decodes. More threads would only hold more pictures at once.
        self.pool = ThreadPoolExecutor(min(os.cpu_count() or 1, int(parameters["threads"])))

    def execute(self, requests):
        """Answer a batch of requests, in order; a bad image fails the request that it came in, and no other."""
        return list(self.pool.map(self._answer, requests))

    def finalize(self):
        """Let the threads end."""
        self.pool.shutdown()

    def _answer(self, request):
        encoded = pb_utils.get_input_tensor_by_name(request, contract.ENCODED).as_numpy().reshape(-1)
        images = np.empty((len(encoded), *self.preprocessing.shape), np.uint8)
        for number, data in enumerate(encoded):
            try:
                images[number] = self._prepare(data)
            except ImageError as err:
                return _refusal(number, len(encoded), f"{err.message} ({err.remedy})" if err.remedy else err.message)
            except Exception as err:  # a codec's own, which the reader does not know: still this request's alone
                return _refusal(number, len(encoded), f"cannot be decoded ({type(err).__name__})")
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(contract.IMAGE, images)])

    def _prepare(self, data):
        if len(data) > self.most_bytes:
            raise ImageError(
                f"{len(data)} bytes, more than {self.most_bytes // _MIB} MiB", remedy="export it at a smaller size"
            )
        return load_radiograph(bytes(data), self.preprocessing)


def _preprocessing(path):
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    if contract.PREPROCESSING_PARAMETER not in config.parameters:
        raise KeyError(contract.PREPROCESSING_PARAMETER)
    return Preprocessing.from_json(config.parameters[contract.PREPROCESSING_PARAMETER].string_value)


def _refusal(number, count, what):
    which = f"image {number + 1} of {count}" if count > 1 else "the image"
    error = pb_utils.TritonError(f"{which}: {what}", pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(error=error)

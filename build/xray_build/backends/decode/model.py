"""Triton Python backend: encoded PNG, JPEG or DICOM bytes -> the image that `medclip` takes.

The reader and the preprocessing are the client's own, so `xray_client` must be importable here. The preprocessing
stands in one place only, the configuration of `medclip` that this server serves, and is read when this model is loaded.
A bad image fails its own request and no other of the batch.

A version of `medclip` with another preprocessing takes effect by a restart of the server; a publisher refuses to load
it over the live one. If an operator loads it by hand all the same, everything is refused here until the restart: a
request may go to that version, and its image would be prepared for the other one. The check costs 50 us a batch
(measured, 2.51), and nothing while all versions have the same preprocessing.

Images are decoded in processes of their own, one image at a time in each, so that a codec that crashes or hangs costs
its own image and no other. In this process a crash would take the model with it until it is loaded again: Triton does
not start it anew (measured, 2.51).
"""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from xray_client import ImageError, ImageUnavailable, Preprocessing, XrayError, contract
from xray_client.decoding import Decoders

Prepared = npt.NDArray[np.uint8] | ImageError

_MIB = 2**20
_HUNG = ImageUnavailable("decoding did not end in time", remedy="try again later")
_STALE = "medclip was loaded with another preprocessing than this server was started with: restart the server"
# Seconds for one image, most of which it may spend waiting for a processor. Requests that wait behind it expire in the
# queue after 10 s.
_DECODE_S = 30.0


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the preprocessing of `medclip`; refuse to load without it."""
        config = json.loads(args["model_config"])
        parameters = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        self.medclip = Path(args["model_repository"]).parent / contract.MODEL_NAME
        self.preprocessings: dict[str, Preprocessing | None] = {}  # of each version; a version is never edited
        self.stale = False
        served = self.medclip / parameters["medclip_configuration"]
        try:
            self.preprocessing = _preprocessing(served)
        except (OSError, KeyError, text_format.ParseError, XrayError) as err:
            raise pb_utils.TritonModelException(
                f"{served} does not say how radiographs are prepared: {err}: publish a version"
            ) from err
        self.most_bytes = int(parameters["max_encoded_mib"]) * _MIB
        # More workers would only hold more images in memory.
        workers = min(os.cpu_count() or 1, int(parameters["workers"]))
        self.threads = ThreadPoolExecutor(workers)
        # The executable of this process may be Triton's stub.
        self.decoders = Decoders(workers, python=shutil.which("python3"), start=True)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch of requests, in order; a bad image fails the request that it came in, and no other."""
        encoded = [pb_utils.get_input_tensor_by_name(request, contract.ENCODED).as_numpy() for request in requests]
        images = self.threads.map(self._prepare, [bytes(data) for tensor in encoded for data in tensor.reshape(-1)])
        responses = [_response([next(images) for _ in range(tensor.size)]) for tensor in encoded]
        if self._is_stale():
            return [_refused(_STALE, pb_utils.TritonError.UNAVAILABLE) for _ in requests]
        return responses

    def finalize(self) -> None:
        """Let the processes end."""
        self.decoders.close()
        self.threads.shutdown()

    def _is_stale(self) -> bool:
        """True once a version of `medclip` with another preprocessing has been loaded. Ask after decoding.

        The ensemble binds a request to a version when it comes in (measured, 2.51), so that version is loaded by then.
        """
        if self.stale:
            return True
        names = [path.name for path in self.medclip.iterdir() if path.name.isdecimal()]
        versions = sorted(names, key=int, reverse=True)
        for version in versions:
            if version not in self.preprocessings:
                self.preprocessings[version] = _manifest_preprocessing(self.medclip / version / "manifest.json")
        if all(self.preprocessings[version] in (None, self.preprocessing) for version in versions):
            return False
        # The ensemble takes the newest that is ready.
        loaded = next((v for v in versions if pb_utils.is_model_ready(contract.MODEL_NAME, v)), None)
        if loaded is None:  # one version is just giving way to another
            return True
        self.stale = self.preprocessings[loaded] not in (None, self.preprocessing)
        return self.stale

    def _prepare(self, data: bytes) -> Prepared:
        """Decode and prepare one file; the image, or its error."""
        if len(data) > self.most_bytes:
            return ImageError(
                f"{len(data)} bytes, more than {self.most_bytes // _MIB} MiB", remedy="export it at a smaller size"
            )
        try:
            return self.decoders.decode(data, self.preprocessing, _DECODE_S)
        except ImageError as err:
            return err
        except TimeoutError:
            return _HUNG


def _preprocessing(path: Path) -> Preprocessing:
    config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    if contract.PREPROCESSING_PARAMETER not in config.parameters:
        raise KeyError(contract.PREPROCESSING_PARAMETER)
    return Preprocessing.from_json(config.parameters[contract.PREPROCESSING_PARAMETER].string_value)


def _manifest_preprocessing(path: Path) -> Preprocessing | None:
    """Preprocessing in a manifest; None if it cannot be read."""
    try:
        return Preprocessing(**json.loads(path.read_text(encoding="utf-8"))["preprocessing"])
    except (OSError, ValueError, KeyError, TypeError, XrayError):
        return None


def _response(images: list[Prepared]) -> Any:
    """Answer one request: with all of its images, or with the first error."""
    prepared = []
    for number, image in enumerate(images):
        if isinstance(image, ImageError):
            which = f"image {number + 1} of {len(images)}" if len(images) > 1 else "the image"
            what = f"{image.message} ({image.remedy})" if image.remedy else image.message
            # What says nothing of the file may pass.
            passing = isinstance(image, ImageUnavailable)
            status = pb_utils.TritonError.UNAVAILABLE if passing else pb_utils.TritonError.INVALID_ARG
            return _refused(f"{which}: {what}", status)
        prepared.append(image)
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(contract.IMAGE, np.stack(prepared))])


def _refused(words: str, status: int) -> Any:
    """Make an error for one response: an error shared by two responses crashes the server (measured, 2.51)."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(words, status))

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
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from xray_client import ImageError, Preprocessing, XrayError, contract

Prepared = npt.NDArray[np.uint8] | ImageError

_MIB = 2**20
# Program of a process that decodes. By Linux's prctl(PR_SET_PDEATHSIG, SIGKILL) it ends with this one, however this one
# ends.
_DECODER_CODE = """
import ctypes; ctypes.CDLL(None).prctl(1, 9)
from xray_client import ImageError, load_radiograph
while True:
    data, preprocessing = connection.recv()
    try:
        prepared = load_radiograph(data, preprocessing)
    except ImageError as err:
        prepared = err
    except Exception as err:  # a codec's own, which the reader does not know
        prepared = ImageError(f"cannot be decoded ({type(err).__name__})")
    connection.send(prepared)
"""
_CRASHED = ImageError("its codec crashed", remedy="export it again, as PNG")
_HUNG = ImageError("its codec did not end in time", remedy="export it again, as PNG")
_STALE = "medclip was loaded with another preprocessing than this server was started with: restart the server"
# Seconds for one image. Requests that wait behind one that hangs expire in the queue after 10 s.
_DECODE_S = 6.0


class _Decoder:
    """A process that decodes one image at a time, replaced when it crashes or hangs."""

    def __init__(self) -> None:
        self._start()

    def decode(self, data: bytes, preprocessing: Preprocessing) -> Prepared:
        """Decode and prepare an image; the image, or its error."""
        for _ in range(2):  # a process may have been ended from outside; a codec that crashes does so again
            try:
                if self.connection.closed:
                    self._start()
                self.connection.send((data, preprocessing))
                if not self.connection.poll(_DECODE_S):
                    self.end()
                    return _HUNG
                prepared: Prepared = self.connection.recv()
                return prepared
            except (EOFError, OSError):  # the process has ended, perhaps while it wrote its answer
                self.end()
        return _CRASHED

    def end(self) -> None:
        """End the process, which may never end by itself."""
        self.process.kill()  # first, or it would complain in the log that nobody talks to it any more
        self.process.join()
        self.connection.close()

    def _start(self) -> None:
        context = get_context("spawn")  # this process has threads, of Triton's, that a fork would lose
        context.set_executable(shutil.which("python3") or sys.executable)  # which may be the stub
        # Only the process itself keeps its end, so that its end is noticed here, whatever it was doing.
        self.connection, end = context.Pipe()
        self.process = context.Process(target=exec, args=(_DECODER_CODE, {"connection": end}), daemon=True)
        self.process.start()
        end.close()
        # The reader is imported before the first radiograph comes.
        self.connection.send((np.zeros((8, 8), np.uint8), Preprocessing()))
        self.connection.recv()


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
        self.idle: SimpleQueue[_Decoder] = SimpleQueue()
        for started in [self.threads.submit(_Decoder) for _ in range(workers)]:
            self.idle.put(started.result())

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
        while not self.idle.empty():
            self.idle.get().end()
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
        decoder = self.idle.get()
        try:
            return decoder.decode(data, self.preprocessing)
        finally:
            self.idle.put(decoder)


def _preprocessing(path: Path) -> Preprocessing:
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    if contract.PREPROCESSING_PARAMETER not in config.parameters:
        raise KeyError(contract.PREPROCESSING_PARAMETER)
    return Preprocessing.from_json(config.parameters[contract.PREPROCESSING_PARAMETER].string_value)


def _manifest_preprocessing(path: Path) -> Preprocessing | None:
    """Preprocessing in a manifest; None if it cannot be read."""
    try:
        return Preprocessing(**json.loads(path.read_text())["preprocessing"])
    except (OSError, ValueError, KeyError, TypeError, XrayError):
        return None


def _response(images: list[Prepared]) -> Any:
    """Answer one request: with all of its images, or with the first error."""
    prepared = []
    for number, image in enumerate(images):
        if isinstance(image, ImageError):
            which = f"image {number + 1} of {len(images)}" if len(images) > 1 else "the image"
            what = f"{image.message} ({image.remedy})" if image.remedy else image.message
            return _refused(f"{which}: {what}", pb_utils.TritonError.INVALID_ARG)
        prepared.append(image)
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(contract.IMAGE, np.stack(prepared))])


def _refused(words: str, status: int) -> Any:
    """Make an error for one response: an error shared by two responses crashes the server (measured, 2.51)."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(words, status))

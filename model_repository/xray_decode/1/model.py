"""Triton Python backend: encoded PNG, JPEG or DICOM bytes -> the image that `medclip` takes.

The reader and the preprocessing are the client's own, so `xray_client` must be importable here. How radiographs are
prepared stands in one place only, the configuration of `medclip` that this server serves; it is read when this model is
loaded. Every request is judged alone: what is wrong with one says nothing about those that Triton batched it with.

Images are decoded in processes of their own. A codec that crashes would otherwise take this model with it until it is
loaded again: Triton does not start it anew (measured, 2.51).
"""

import json
import os
import shutil
import sys
import time
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from xray_client import ImageError, Preprocessing, XrayError, contract, load_radiograph

_MIB = 2**20
# Linux's prctl(PR_SET_PDEATHSIG, SIGKILL): a process that decodes ends with this one, however this one ends.
_END_WITH_PARENT = "import ctypes; ctypes.CDLL(None).prctl(1, 9)"
_CRASHED = ImageError("its codec crashed", remedy="export it again, as PNG")
# Seconds for the images of a batch, then for each that is tried again: a codec that hangs is like one that crashed.
_DECODE_S = 20.0


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
        # More would only hold more pictures at once.
        self.workers = min(os.cpu_count() or 1, int(parameters["workers"]))
        self.pool = self._new_pool()

    def execute(self, requests):
        """Answer a batch of requests, in order; a bad image fails the request that it came in, and no other."""
        encoded = [pb_utils.get_input_tensor_by_name(request, contract.ENCODED).as_numpy() for request in requests]
        images = iter(self._prepare_all([bytes(data) for tensor in encoded for data in tensor.reshape(-1)]))
        return [_response([next(images) for _ in range(tensor.size)]) for tensor in encoded]

    def finalize(self):
        """Let the processes end."""
        self.pool.shutdown()

    def _new_pool(self):
        context = get_context("spawn")  # this process has threads, of Triton's, that a fork would lose
        context.set_executable(shutil.which("python3") or sys.executable)  # which may be the stub
        pool = ProcessPoolExecutor(self.workers, context, initializer=exec, initargs=(_END_WITH_PARENT,))
        # All of them are there, with the reader imported, before the first radiograph comes.
        black = np.zeros((8, 8), np.uint8)
        records = [self.preprocessing] * self.workers
        list(pool.map(load_radiograph, [black] * self.workers, records, timeout=_DECODE_S))
        return pool

    def _renew_pool(self):
        for process in list((self.pool._processes or {}).values()):
            process.kill()  # one that hangs would never end by itself
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.pool = self._new_pool()

    def _prepare_all(self, files):
        """Each file's image, or the error that it has."""
        waiting = [self._start(data) for data in files]
        until = time.monotonic() + _DECODE_S
        results = [self._result(future, until) for future in waiting]
        crashed = [number for number, result in enumerate(results) if result is _CRASHED]
        if crashed:
            self._renew_pool()
        for number in crashed:
            # One of them has done it, and whatever was under way is lost: each once more, alone.
            results[number] = self._result(self._start(files[number]), time.monotonic() + _DECODE_S)
            if results[number] is _CRASHED:
                self._renew_pool()
        return results

    def _start(self, data):
        if len(data) > self.most_bytes:
            return ImageError(
                f"{len(data)} bytes, more than {self.most_bytes // _MIB} MiB", remedy="export it at a smaller size"
            )
        try:
            return self.pool.submit(load_radiograph, data, self.preprocessing)
        except RuntimeError:  # the pool is broken, or was shut down and could not be made anew
            return _CRASHED

    def _result(self, started, until):
        if isinstance(started, ImageError):
            return started
        try:
            return started.result(max(0.0, until - time.monotonic()))
        except ImageError as err:
            return err
        except (BrokenProcessPool, CancelledError, FutureTimeout):
            return _CRASHED
        except Exception as err:  # a codec's own, which the reader does not know
            return ImageError(f"cannot be decoded ({type(err).__name__})")


def _preprocessing(path):
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    if contract.PREPROCESSING_PARAMETER not in config.parameters:
        raise KeyError(contract.PREPROCESSING_PARAMETER)
    return Preprocessing.from_json(config.parameters[contract.PREPROCESSING_PARAMETER].string_value)


def _response(images):
    """The answer to one request: all of its images, or the first one's error."""
    for number, image in enumerate(images):
        if isinstance(image, ImageError):
            which = f"image {number + 1} of {len(images)}" if len(images) > 1 else "the image"
            what = f"{image.message} ({image.remedy})" if image.remedy else image.message
            error = pb_utils.TritonError(f"{which}: {what}", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(contract.IMAGE, np.stack(images))])

"""Triton Python backend: encoded PNG, JPEG or DICOM bytes -> the image that `medclip` takes.

The reader and the preprocessing are the client's own, so `xray_client` must be importable here. How radiographs are
prepared stands in one place only, the configuration of `medclip` that this server serves; it is read when this model is
loaded. Every request is judged alone: what is wrong with one says nothing about those that Triton batched it with.

Should `medclip` be loaded later without this model, a version with another preprocessing may answer. The ensemble binds
a request to a version of `medclip` when it comes in, before it waits here (measured, 2.51). So what was prepared when
another version is found to be loaded is refused, and so is everything for as long as a request may have waited here, in
the queue and then in a batch that was formed; whatever comes after that belongs to the version that is loaded, and is
prepared as its manifest says. Asking costs 50 us a batch, and nothing while all versions want the same.

Images are decoded in processes of their own, one image at a time in each, so that a codec that crashes or hangs costs
its own image and no other. In this process a crash would take the model with it until it is loaded again: Triton does
not start it anew (measured, 2.51).
"""

import json
import math
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import triton_python_backend_utils as pb_utils
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from xray_client import ImageError, Preprocessing, XrayError, contract, load_radiograph

_MIB = 2**20
# Linux's prctl(PR_SET_PDEATHSIG, SIGKILL): a process that decodes ends with this one, however this one ends.
_END_WITH_PARENT = "import ctypes; ctypes.CDLL(None).prctl(1, 9)"
_CRASHED = ImageError("its codec crashed", remedy="export it again, as PNG")
_HUNG = ImageError("its codec did not end in time", remedy="export it again, as PNG")
_EXCHANGED = (
    "medclip was loaded without xray_decode and wants its radiographs prepared otherwise: try again in some seconds"
)
# Seconds without work after which no batch was waiting.
_IDLE_S = 1.0
# Seconds for one image. Those that wait behind one that hangs expire in the queue after 10 s.
_DECODE_S = 6.0


class _Decoder:
    """A process that decodes one image at a time, replaced when it crashes or hangs."""

    def __init__(self):
        self.pool: ProcessPoolExecutor | None = None
        self._start()

    def decode(self, data, preprocessing):
        """The image, or the error that it has."""
        for _ in range(2):  # a process may have been ended from outside; a codec that crashes does so again
            try:
                pool = self.pool or self._start()
                return pool.submit(load_radiograph, data, preprocessing).result(_DECODE_S)
            except ImageError as err:
                return err
            except FutureTimeout:
                self.pool = None
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)  # it would never end by itself
                return _HUNG
            except BrokenProcessPool:
                self.pool = None
            except Exception as err:  # a codec's own, which the reader does not know
                return ImageError(f"cannot be decoded ({type(err).__name__})")
        return _CRASHED

    def end(self):
        """Let the process end."""
        if self.pool is not None:
            self.pool.shutdown()

    def _start(self):
        context = get_context("spawn")  # this process has threads, of Triton's, that a fork would lose
        context.set_executable(shutil.which("python3") or sys.executable)  # which may be the stub
        pool = ProcessPoolExecutor(1, context, initializer=exec, initargs=(_END_WITH_PARENT,))
        self.pid = pool.submit(os.getpid).result()
        # The reader is imported before the first radiograph comes.
        pool.submit(load_radiograph, np.zeros((8, 8), np.uint8), Preprocessing()).result()
        self.pool = pool
        return pool


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args):
        """Read how `medclip` wants its radiographs; refuses to load where that is not known."""
        config = json.loads(args["model_config"])
        parameters = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        self.medclip = Path(args["model_repository"]).parent / contract.MODEL_NAME
        self.wanted_by = {}  # how each version wants its radiographs; a version is never edited
        self.fits_from, self.unsure, self.ended = 0.0, 0, 0.0
        # Triton forms up to two batches an instance ahead of those that are executed.
        self.formed = 1 + 2 * sum(int(group["count"]) for group in config["instance_group"])
        self.longest_wait_s = _longest_wait_s(config["dynamic_batching"])
        served = self.medclip / parameters["medclip_configuration"]
        try:
            self.preprocessing = _preprocessing(served)
        except (OSError, KeyError, text_format.ParseError, XrayError) as err:
            raise pb_utils.TritonModelException(
                f"{served} does not say how radiographs are prepared: {err}: publish a version"
            ) from err
        self.most_bytes = int(parameters["max_encoded_mib"]) * _MIB
        # More would only hold more pictures at once.
        workers = min(os.cpu_count() or 1, int(parameters["workers"]))
        self.threads = ThreadPoolExecutor(workers)
        self.idle: SimpleQueue[_Decoder] = SimpleQueue()
        for started in [self.threads.submit(_Decoder) for _ in range(workers)]:
            self.idle.put(started.result())

    def execute(self, requests):
        """Answer a batch of requests, in order; a bad image fails the request that it came in, and no other."""
        started = time.monotonic()
        encoded = [pb_utils.get_input_tensor_by_name(request, contract.ENCODED).as_numpy() for request in requests]
        images = self.threads.map(self._prepare, [bytes(data) for tensor in encoded for data in tensor.reshape(-1)])
        responses = [_response([next(images) for _ in range(tensor.size)]) for tensor in encoded]
        fits = self._fits_medclip(started)
        self.ended = time.monotonic()
        if not fits:
            return [_refused(_EXCHANGED, pb_utils.TritonError.UNAVAILABLE) for _ in requests]
        return responses

    def finalize(self):
        """Let the processes end."""
        while not self.idle.empty():
            self.idle.get().end()
        self.threads.shutdown()

    def _fits_medclip(self, started):
        """Whether what has been prepared since then is right for the version that its request was bound to."""
        versions = sorted((int(path.name) for path in self.medclip.iterdir() if path.name.isdecimal()), reverse=True)
        for version in versions:
            if version not in self.wanted_by:
                self.wanted_by[version] = _manifest_preprocessing(self.medclip / str(version) / "manifest.json")
        if any(self.wanted_by[version] not in (None, self.preprocessing) for version in versions):
            # The ensemble takes the newest that is ready.
            loaded = next((v for v in versions if pb_utils.is_model_ready(contract.MODEL_NAME, str(v))), None)
            if loaded is None:  # just being exchanged
                return False
            if self.wanted_by[loaded] not in (None, self.preprocessing):
                self.preprocessing, self.unsure = self.wanted_by[loaded], self.formed
                self.fits_from = time.monotonic() + self.longest_wait_s
        if started < self.fits_from:
            return False
        if self.unsure and started - self.ended <= _IDLE_S:
            self.unsure -= 1
            return False
        self.unsure = 0
        return True

    def _prepare(self, data):
        """One file's image, or the error that it has."""
        if len(data) > self.most_bytes:
            return ImageError(
                f"{len(data)} bytes, more than {self.most_bytes // _MIB} MiB", remedy="export it at a smaller size"
            )
        decoder = self.idle.get()
        try:
            return decoder.decode(data, self.preprocessing)
        finally:
            self.idle.put(decoder)


def _preprocessing(path):
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    if contract.PREPROCESSING_PARAMETER not in config.parameters:
        raise KeyError(contract.PREPROCESSING_PARAMETER)
    return Preprocessing.from_json(config.parameters[contract.PREPROCESSING_PARAMETER].string_value)


def _longest_wait_s(batching):
    """Seconds after which the queue drops a request; for ever where one of its policies has no limit."""
    policies = [batching["default_queue_policy"], *batching["priority_queue_policy"].values()]
    limits = [int(policy["default_timeout_microseconds"]) / 1e6 for policy in policies]
    return max(limits) if all(limits) else math.inf


def _manifest_preprocessing(path):
    """None where it does not say."""
    try:
        return Preprocessing(**json.loads(path.read_text())["preprocessing"])
    except (OSError, ValueError, KeyError, TypeError, XrayError):
        return None


def _response(images):
    """The answer to one request: all of its images, or the first one's error."""
    for number, image in enumerate(images):
        if isinstance(image, ImageError):
            which = f"image {number + 1} of {len(images)}" if len(images) > 1 else "the image"
            what = f"{image.message} ({image.remedy})" if image.remedy else image.message
            return _refused(f"{which}: {what}", pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(contract.IMAGE, np.stack(images))])


def _refused(words, status):
    """An error of its own for each response: one that is shared between two crashes the server (measured, 2.51)."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(words, status))

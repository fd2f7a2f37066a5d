"""The GPU of this machine, through NVIDIA's own `cuda.bindings`: its description, and running a TensorRT plan on it.

Used only where a plan is built: inside the container that serves.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from xray_build.errors import BuildError
from xray_client import contract

from .runtime import Images, Run, UnavailableError


@dataclass(frozen=True)
class Gpu:
    """A GPU, as a plan is bound to it.

    Attributes:
        name: The driver's name for it.
        compute_capability: Compute capability, such as "8.9".
        cuda: Newest CUDA version that the driver supports, such as "13.4".
    """

    name: str
    compute_capability: str
    cuda: str

    def as_dict(self) -> dict[str, str]:
        """All fields, for the build record."""
        return asdict(self)


def find_gpu() -> Gpu:
    """Describe the first GPU.

    Raises:
        UnavailableError: There is no GPU, or no driver for it.
    """
    driver = _bindings("driver")
    try:
        _ok(driver.cuInit(0))
        device = _ok(driver.cuDeviceGet(0))
        attribute = driver.CUdevice_attribute
        major = _ok(driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))
        minor = _ok(driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))
        name = _ok(driver.cuDeviceGetName(100, device)).split(b"\0")[0].decode()
        cuda = _ok(driver.cuDriverGetVersion())
    except (BuildError, RuntimeError) as err:
        raise UnavailableError(
            "no NVIDIA GPU on this machine", remedy="build the plan where it will be served"
        ) from err
    return Gpu(name, f"{major}.{minor}", f"{cuda // 1000}.{cuda % 1000 // 10}")


@contextlib.contextmanager
def plan_session(trt: ModuleType, plan: Path, *, max_batch: int, shape: tuple[int, ...]) -> Iterator[Run]:
    """Load a plan, to run it for images uint8 (n <= max_batch, *shape); buffers are kept between calls.

    Args:
        trt: The TensorRT bindings.
        plan: The engine's file.
        max_batch: Largest batch, within the plan's profile.
        shape: Shape of one image, (1, s, s).

    Raises:
        BuildError: TensorRT refuses the plan, or CUDA an operation.
    """
    runtime = _bindings("runtime")
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise BuildError("TensorRT cannot load the plan that it has just built", source=str(plan))
    context = engine.create_execution_context()
    stream = _ok(runtime.cudaStreamCreate())
    buffers: dict[str, tuple[Any, npt.NDArray[Any]]] = {}

    def buffer(name: str, size: tuple[int, ...]) -> npt.NDArray[Any]:
        host = np.empty(size, trt.nptype(engine.get_tensor_dtype(name)))
        device = _ok(runtime.cudaMalloc(host.nbytes))
        context.set_tensor_address(name, int(device))
        buffers[name] = device, host
        return host

    def run(images: Images) -> list[npt.NDArray[Any]]:
        n = len(images)
        device, _ = buffers[contract.IMAGE]
        images = np.ascontiguousarray(images)
        _ok(
            runtime.cudaMemcpy(device, images.ctypes.data, images.nbytes, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)
        )
        context.set_input_shape(contract.IMAGE, (n, *shape))
        if not context.execute_async_v3(int(stream)):
            raise BuildError("TensorRT could not run the plan", source=str(plan))
        _ok(runtime.cudaStreamSynchronize(stream))
        answers = []
        for name in contract.OUTPUTS:
            device, host = buffers[name]
            part = host[:n]
            _ok(
                runtime.cudaMemcpy(part.ctypes.data, device, part.nbytes, runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost)
            )
            answers.append(part.copy())
        return answers

    try:
        buffer(contract.IMAGE, (max_batch, *shape))
        context.set_input_shape(contract.IMAGE, (max_batch, *shape))
        for name in contract.OUTPUTS:
            buffer(name, tuple(context.get_tensor_shape(name)))
        yield run
    finally:
        for device, _ in buffers.values():
            runtime.cudaFree(device)
        runtime.cudaStreamDestroy(stream)


def milliseconds(run: Run, images: Images, *, count: int = 200, warm_up: int = 20) -> float:
    """Measure the median time of a call, copies to and from the GPU included."""
    taken = []
    for turn in range(warm_up + count):
        started = time.perf_counter()
        run(images)
        if turn >= warm_up:
            taken.append(1000 * (time.perf_counter() - started))
    return float(np.median(taken))


def _bindings(part: str) -> Any:
    try:
        from cuda.bindings import driver, runtime
    except ImportError as err:
        raise UnavailableError(
            "NVIDIA's cuda-bindings are not installed", remedy='pip install "medclip-triton[tensorrt]"'
        ) from err
    return driver if part == "driver" else runtime


def _ok(result: tuple[Any, ...]) -> Any:
    """Return the value of a CUDA call, which answers (error, value...)."""
    if int(result[0]) != 0:
        raise BuildError(f"CUDA failed: {getattr(result[0], 'name', result[0])}")
    return result[1] if len(result) > 1 else None

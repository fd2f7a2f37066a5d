"""Properties that a TensorRT plan depends on, of this machine and of the one that built it; no engine is loaded."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PLAN_LIBRARIES = ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so")
_DRIVER = "libcuda.so.1"
# CUdevice_attribute of the CUDA driver API.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True, slots=True)
class Machine:
    """Properties that a plan is bound to; "" = absent or unknown.

    Attributes:
        tensorrt: Release of TensorRT, such as "10.13.2".
        cuda: Newest CUDA that the driver supports, such as "13.0".
        gpu: Name of the first GPU.
        compute_capability: Architecture of that GPU, such as "8.9".
    """

    tensorrt: str = ""
    cuda: str = ""
    gpu: str = ""
    compute_capability: str = ""

    @classmethod
    def here(cls) -> Machine:
        """Read the properties of this machine."""
        return cls(_tensorrt(), *_driver())

    @classmethod
    def of_plan(cls, build: Mapping[str, Any]) -> Machine | None:
        """Read those of the machine that built the plan from the build record; None if it names none."""
        details = _details(build)
        gpu = details.get("gpu") if isinstance(details.get("gpu"), dict) else {}
        if not gpu:
            return None
        values = (details.get("tensorrt"), gpu.get("cuda"), gpu.get("name"), gpu.get("compute_capability"))
        return cls(*(str(value or "") for value in values))


def largest_batch_of_plan(build: Mapping[str, Any]) -> int:
    """Largest batch of the plan's profile, from the build record; 0 if it does not say."""
    options = _details(build).get("options")
    return int(options.get("max_batch", 0)) if isinstance(options, dict) else 0


def _details(build: Mapping[str, Any]) -> dict[str, Any]:
    for step in build.get("steps", []):
        if step.get("name") == "plan":
            return dict(step.get("details", {}))
    return {}


def _tensorrt() -> str:
    """Release of the library that would load a plan."""
    for name in _PLAN_LIBRARIES:
        try:
            number = int(ctypes.CDLL(name).getInferLibVersion())
        except (OSError, AttributeError):
            continue
        # The format of NV_TENSORRT_VERSION since TensorRT 10.
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return ""


def _driver() -> tuple[str, str, str]:
    """CUDA, name and compute capability of the first GPU, by its driver."""
    try:
        driver = ctypes.CDLL(_DRIVER)
        name, number = ctypes.create_string_buffer(100), ctypes.c_int()

        def query(function: str, *arguments: object) -> int:
            if getattr(driver, function)(ctypes.byref(number), *arguments):
                raise OSError(f"{function} failed")
            return number.value

        if driver.cuInit(0):
            raise OSError("no GPU")
        cuda, device = query("cuDriverGetVersion"), query("cuDeviceGet", 0)
        major = query("cuDeviceGetAttribute", _CAPABILITY_MAJOR, device)
        minor = query("cuDeviceGetAttribute", _CAPABILITY_MINOR, device)
        driver.cuDeviceGetName(name, len(name), device)
    except (OSError, AttributeError):
        return "", "", ""
    return f"{cuda // 1000}.{cuda % 1000 // 10}", name.value.decode(), f"{major}.{minor}"

"""ONNX -> engine, by NVIDIA's compilers, with one set of options:

    tensorrt        model.plan, for Triton; needs the GPU that will serve, and the libnvinfer that will serve
    tensorrt-rtx    model_rtx.engine, for RTX cards under ONNX Runtime or TensorRT-RTX; needs no GPU to build

Precision is the graph's: networks are strongly typed, as TensorRT 11 knows no others, and TensorRT 10.12+ is told so.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from xray_build.errors import BuildError
from xray_client import contract

from .runtime import UnavailableError

COMPILERS = ("tensorrt", "tensorrt-rtx")
# Module names, first the whole package, then the bindings alone, which load the system's libnvinfer.
_MODULES = {"tensorrt": ("tensorrt", "tensorrt_bindings"), "tensorrt-rtx": ("tensorrt_rtx",)}
_LIBRARIES = {"tensorrt": "libnvinfer.so", "tensorrt-rtx": "libtensorrt_rtx.so"}
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
_OLDEST_TENSORRT = (10, 12)


@dataclass(frozen=True)
class BuilderOptions:
    """Options of a build, the same for both compilers.

    Args:
        min_batch: Smallest batch that the engine takes.
        opt_batch: Batch that it is tuned for.
        max_batch: Largest batch; at least the served configuration's.
        optimization_level: 0 (quick to build) to 5 (quickest engine).
        workspace_mib: Memory that a layer may use while computing, MiB; 0 = all there is.
        timing_cache: File that keeps timings of kernels between builds, TensorRT only; None = measure each time.
        tf32: Let 32-bit products round their inputs to TF32, with FP16's 10 bits. Off by default: nodes that stay in
            FP32 stay there for those bits.
        compute_capability: GPU that a TensorRT-RTX engine is for, such as "8.9"; "current" = this machine's.
            TensorRT always builds for this machine's.
    """

    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = 32
    optimization_level: int = 3
    workspace_mib: int = 0
    timing_cache: Path | None = None
    tf32: bool = False
    compute_capability: str = "8.9"

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise BuildError(
                f"batches must be 1 <= min <= opt <= max, not {self.min_batch}, {self.opt_batch}, {self.max_batch}"
            )
        if not 0 <= self.optimization_level <= 5:
            raise BuildError(f"optimization level {self.optimization_level} is not 0 to 5")
        if self.workspace_mib < 0:
            raise BuildError(f"workspace of {self.workspace_mib} MiB")
        if self.compute_capability != "current" and not re.fullmatch(r"\d+\.\d", self.compute_capability):
            raise BuildError(f'compute capability {self.compute_capability!r} is not like "8.9", nor "current"')

    def as_dict(self) -> dict[str, Any]:
        """All fields, for the build record."""
        return {**asdict(self), "timing_cache": str(self.timing_cache) if self.timing_cache else None}


@dataclass(frozen=True)
class Engine:
    """A compiled engine, and the network that went into the compiler.

    Attributes:
        compiler: "tensorrt" or "tensorrt-rtx".
        version: Version of the compiler's library.
        tensors: Name -> (type, shape with -1 for the batch), inputs and outputs.
        bytes: Size of the engine.
        seconds: Duration of the compilation.
    """

    compiler: str
    version: str
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    bytes: int
    seconds: float


def compile_engine(
    graph: Path, path: Path, options: BuilderOptions | None = None, *, compiler: str = "tensorrt"
) -> Engine:
    """Compile a graph with a dynamic batch.

    Args:
        graph: ONNX; its types are the engine's.
        path: File to write.
        options: Options of the build; None = the defaults.
        compiler: One of `COMPILERS`.

    Raises:
        UnavailableError: The compiler, its library or its GPU is not on this machine.
        BuildError: The bindings and the library are of different versions, or the compiler refuses the graph.
    """
    options = options or BuilderOptions()
    trt, version = load_compiler(compiler)
    started = time.monotonic()
    log = _log_of(trt)
    log.last = ""
    try:
        builder = trt.Builder(log.logger)
    except (TypeError, RuntimeError) as err:  # without a GPU the builder's factory answers null
        raise UnavailableError(f"{compiler} cannot start: {log.last or err}", remedy="build where a GPU is") from err
    # TensorRT 11 has this kind only, but still accepts the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(graph)):
        raise BuildError(f"{compiler} cannot read the graph: {parser.get_error(0).desc()}", source=str(graph))
    tensors = _tensors(trt, network)
    config = _configured(trt, builder, network, options, compiler)
    keeps_timings = options.timing_cache if compiler == "tensorrt" else None  # RTX times on the user's machine instead
    cache = _timing_cache(config, keeps_timings)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise BuildError(f"{compiler} cannot build the graph: {log.last}", source=str(graph))
    path.write_bytes(serialized)
    if cache is not None and keeps_timings:
        keeps_timings.parent.mkdir(parents=True, exist_ok=True)
        keeps_timings.write_bytes(config.get_timing_cache().serialize())
    return Engine(compiler, version, tensors, path.stat().st_size, time.monotonic() - started)


def load_compiler(compiler: str) -> tuple[ModuleType, str]:
    """Import the bindings; returns them with the version that they and the loaded library agree on.

    The server refuses a plan of another libnvinfer with "version tag does not match", so this is checked before minutes
    of building.

    Raises:
        UnavailableError: Bindings or library are not on this machine.
        BuildError: Their versions differ, or are too old.
    """
    if compiler not in COMPILERS:
        raise BuildError(f"compiler {compiler!r} is none of {', '.join(COMPILERS)}")
    remedy = f'pip install "medclip-triton[{_EXTRAS[compiler]}]"'
    if compiler == "tensorrt":
        remedy += " inside the container that serves"
    why: Exception | None = None
    for name in _MODULES[compiler]:
        try:
            trt = importlib.import_module(name)
            break
        except ModuleNotFoundError as err:
            why = why or err
        except (ImportError, OSError, RuntimeError) as err:  # the bindings are there, the library is not
            why = err
    else:
        missing = "not installed" if isinstance(why, ModuleNotFoundError) else f"without its library ({_line(why)})"
        raise UnavailableError(f"{compiler} is {missing}", remedy=remedy) from why
    loaded = library_version(_LIBRARIES[compiler])
    bindings = ".".join(trt.__version__.split(".")[:3])
    if loaded is None or loaded != bindings:
        raise BuildError(
            f"the {compiler} bindings are {bindings}, the library that they loaded is {loaded or 'unknown'}",
            remedy=f"install the bindings of version {loaded}" if loaded else remedy,
        )
    if compiler == "tensorrt" and tuple(int(part) for part in bindings.split(".")[:2]) < _OLDEST_TENSORRT:
        raise BuildError(f"TensorRT {bindings} is too old", remedy="10.12 or newer")
    return trt, bindings


def library_version(library: str) -> str | None:
    """Ask a library that this process has loaded for its version; None if it has not loaded it."""
    maps = Path("/proc/self/maps").read_text()
    paths = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if f"/{library}" in line}
    for path in sorted(paths):
        ask = ctypes.CDLL(path).getInferLibVersion
        ask.restype = ctypes.c_int
        number = int(ask())  # 10000 major + 100 minor + patch, NvInferVersion.h
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return None


def _configured(trt: ModuleType, builder: Any, network: Any, options: BuilderOptions, compiler: str) -> Any:
    config = builder.create_builder_config()
    config.builder_optimization_level = options.optimization_level
    if options.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)  # set unless cleared
    if compiler == "tensorrt-rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(_capability(trt, options.compute_capability), 0)
    profile = builder.create_optimization_profile()
    image = tuple(network.get_input(0).shape)[1:]
    batches = (options.min_batch, options.opt_batch, options.max_batch)
    profile.set_shape(contract.IMAGE, *((batch, *image) for batch in batches))
    config.add_optimization_profile(profile)
    return config


def _capability(trt: ModuleType, wanted: str) -> Any:
    name = "CURRENT" if wanted == "current" else f"SM{wanted.replace('.', '')}"
    known = trt.ComputeCapability.__members__
    if name not in known:
        raise BuildError(
            f"this TensorRT-RTX does not build for compute capability {wanted}",
            remedy="one of " + ", ".join(f"{n[2:-1]}.{n[-1]}" for n in known if re.fullmatch(r"SM\d+", n)),
        )
    return known[name]


def _timing_cache(config: Any, path: Path | None) -> Any:
    """Give the builder the timings of earlier builds; it ignores a cache of another version or GPU."""
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _tensors(trt: ModuleType, network: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    return {tensor.name: (tensor.dtype.name, tuple(tensor.shape)) for tensor in tensors}


@functools.cache
def _log_of(trt: ModuleType) -> _Log:
    """Make the logger of a library once: the library keeps the first one, as long as the process lives."""
    return _Log(trt)


class _Log:
    """Keeps the compiler's last error, which its API does not return."""

    def __init__(self, trt: ModuleType) -> None:
        self.last = ""

        def log(_: object, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last = message.strip()

        self.logger = type("Logger", (trt.ILogger,), {"log": log})()


def _line(err: Exception | None) -> str:
    return str(err).splitlines()[0] if str(err) else type(err).__name__

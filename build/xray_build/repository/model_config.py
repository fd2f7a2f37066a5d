"""Triton model configurations: plain dataclasses -> `config.pbtxt` and back, through Triton's own protobuf schema.

One model, one configuration per engine (`--model-config-name`):

    config.pbtxt              TensorRT, on an NVIDIA GPU
    configs/onnx.pbtxt        ONNX Runtime backend, in any Triton container
    configs/openvino.pbtxt    OpenVINO backend, on an Intel CPU
    configs/embedded.pbtxt    Python backend over ONNX Runtime or OpenVINO, for the local server

The models around it, `xray_decode`, `xray_metrics` and the ensemble `xray_classifier`, are configured by `ensemble`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from xray_build.artefacts import INT8_FILE, LABELS_FILE, MODEL_CODE_FILE, ONNX_FILE, PLAN_FILE
from xray_build.errors import BuildError
from xray_client import LABELS, ModelCard, Preprocessing, PreprocessingMismatch, contract

from .pbtxt import parse_config, to_text

CONFIGS_FOLDER = "configs"
WARM_UP_FOLDER = "warmup"  # where Triton looks for `input_data_file`
HEATMAP_SHAPE = (7, 7)

# Engine, instances, threads of each (0 = its share of the cores) and batches of the Python backend. Measured in
# docs/performance.md: instances of one thread each answer more than one of all threads, the more so on a busy machine,
# and one instance more than a small machine has cores computes while another hands over its answers.
# An image costs as much in a batch as alone, and a request that comes meanwhile waits for the whole batch: keep it
# small.
EMBEDDED_ENGINE = "onnxruntime"
EMBEDDED_THREADS = "0"
EMBEDDED_INSTANCES = 3
EMBEDDED_BATCHES = (2,)
# File that each engine of the Python backend runs.
EMBEDDED_ENGINES = {"onnxruntime": ONNX_FILE, "openvino": ONNX_FILE, "openvino-int8": INT8_FILE}
# File that the OpenVINO backend loads: the graph as it is, or INT8_FILE.
OPENVINO_ARTEFACT = ONNX_FILE

# Priority levels of a request; Triton serves the lower number first.
STAT, ROUTINE = 1, 2

_KINDS = {"CPU": pb.ModelInstanceGroup.KIND_CPU, "GPU": pb.ModelInstanceGroup.KIND_GPU}


def _require(true: bool, what: str) -> None:
    if not true:
        raise BuildError(f"not a configuration: {what}")


@dataclass(frozen=True)
class EngineConfig:
    """The part of a configuration that differs between engines.

    Args:
        name: Name of the configuration.
        backend: Triton backend.
        artefact: File in the version directory that the backend loads.
        kind: "CPU" or "GPU", where its instances run.
        instances: Batches that are computed at the same time.
        queue_delay_us: Microseconds that a request waits for others to batch with; 0 = never on purpose.
        preferred_batches: Batch sizes to make when as many requests wait; none = any size.
        cuda_graphs: Capture the engine as CUDA graphs, at batch 1, the preferred sizes and the largest.
        profile: Name of the TensorRT optimization profile; "" = the engine has none.
        parameters: Backend parameters.

    Raises:
        BuildError: A value that cannot work.
    """

    name: str
    backend: str
    artefact: str
    kind: str = "CPU"
    instances: int = 1
    queue_delay_us: int = 0
    preferred_batches: tuple[int, ...] = ()
    cuda_graphs: bool = False
    profile: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(bool(self.name and self.backend and self.artefact), "an engine has a name, a backend and an artefact")
        _require(Path(self.artefact).name == self.artefact, f"artefact {self.artefact!r} is not the name of a file")
        _require(self.kind in _KINDS, f"kind {self.kind!r} is none of {', '.join(_KINDS)}")
        _require(self.instances >= 1, "instances must be at least 1")
        _require(self.queue_delay_us >= 0, "queue_delay_us must be at least 0")
        _require(all(size >= 1 for size in self.preferred_batches), "preferred_batches must be at least 1")
        _require(self.kind == "GPU" or not self.cuda_graphs, "CUDA graphs need instances on a GPU")
        engine = self.parameters.get("engine", EMBEDDED_ENGINE)
        _require(engine in EMBEDDED_ENGINES, f"engine {engine!r} is none of {', '.join(EMBEDDED_ENGINES)}")
        threads = self.parameters.get("threads", "0")
        _require(threads.isdecimal(), f"threads {threads!r} is not a number; 0 = its share of the cores")

    @property
    def file(self) -> str:
        """The configuration's path inside the model's folder; TensorRT's is the one that Triton takes by default."""
        return "config.pbtxt" if self.name == "tensorrt" else f"{CONFIGS_FOLDER}/{self.name}.pbtxt"


ENGINES = (
    # Half a millisecond is a fraction of what a request takes on its way, and enough for its neighbours to arrive. The
    # preferred sizes are those that the plan's profile was optimised for and its largest.
    EngineConfig("tensorrt", "tensorrt", PLAN_FILE, "GPU", 1, 500, (8, 32), cuda_graphs=True, profile="0"),
    EngineConfig("onnx", "onnxruntime", ONNX_FILE),
    EngineConfig("openvino", "openvino", OPENVINO_ARTEFACT),
    EngineConfig(
        "embedded",
        "python",
        MODEL_CODE_FILE,
        instances=EMBEDDED_INSTANCES,
        preferred_batches=EMBEDDED_BATCHES,
        parameters={"engine": EMBEDDED_ENGINE, "threads": EMBEDDED_THREADS},
    ),
)


@dataclass(frozen=True)
class QueuePolicy:
    """Limits of the queue of one priority; a request over a limit is rejected with an error.

    Args:
        timeout_s: Seconds after which a waiting request is rejected; 0 = no limit.
        longest: Requests that may wait; 0 = no limit.
        may_shorten: Whether a request may ask for a shorter timeout of its own.

    Raises:
        BuildError: A value that cannot work.
    """

    timeout_s: float = 0
    longest: int = 0
    may_shorten: bool = True

    def __post_init__(self) -> None:
        _require(self.timeout_s >= 0 and self.longest >= 0, "a queue's timeout_s and longest must be at least 0")

    def message(self) -> pb.ModelQueuePolicy:
        """Build Triton's message."""
        return pb.ModelQueuePolicy(
            timeout_action=pb.ModelQueuePolicy.REJECT,
            default_timeout_microseconds=round(self.timeout_s * 1e6),
            allow_timeout_override=self.may_shorten,
            max_queue_size=self.longest,
        )

    @classmethod
    def from_message(cls, message: pb.ModelQueuePolicy) -> QueuePolicy:
        """Read Triton's message."""
        timeout_s = message.default_timeout_microseconds / 1e6
        return cls(timeout_s, message.max_queue_size, message.allow_timeout_override)


@dataclass(frozen=True)
class ServingConfig:
    """The part of a configuration that is the same for every engine.

    Args:
        preprocessing: Preprocessing that clients must use; part of the served parameters.
        max_batch_size: Largest batch that the dynamic batcher makes.
        stat: Queue of urgent requests, priority 1: answered before any routine request that waits.
        routine: Queue of all others, priority 2. Its limit of 10 s is the client's own default deadline.
        version: The version to serve; None = the latest.
        card: Model card of that version; None = nothing is known.

    Raises:
        BuildError: A value that cannot work.
    """

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    max_batch_size: int = 32
    stat: QueuePolicy = field(default_factory=lambda: QueuePolicy(timeout_s=10, longest=128))
    routine: QueuePolicy = field(default_factory=lambda: QueuePolicy(timeout_s=10, longest=512))
    version: int | None = None
    card: ModelCard | None = None

    def __post_init__(self) -> None:
        _require(self.max_batch_size >= 1, "max_batch_size must be at least 1")
        _require(self.version is None or self.version >= 1, "a version is a number from 1")


def warm_up_file(size: int) -> str:
    """Name of the file with one radiograph of size x size, raw bytes; another size has another file."""
    return f"radiograph-{size}.raw"


def contract_outputs() -> list[pb.ModelOutput]:
    """Build the outputs of the contract, with the labels of the probabilities."""
    return [
        pb.ModelOutput(
            name=contract.PROBABILITY, data_type=pb.TYPE_FP32, dims=[len(LABELS)], label_filename=LABELS_FILE
        ),
        pb.ModelOutput(name=contract.DECISION, data_type=pb.TYPE_INT32, dims=[1]),
        pb.ModelOutput(name=contract.HEATMAP, data_type=pb.TYPE_FP32, dims=HEATMAP_SHAPE),
        pb.ModelOutput(name=contract.NOVELTY, data_type=pb.TYPE_FP32, dims=[1]),
    ]


def model_config(engine: EngineConfig, serving: ServingConfig) -> pb.ModelConfig:
    """Build the configuration of one engine as Triton's message.

    Raises:
        BuildError: The engine prefers larger batches than the batcher makes.
    """
    _require(
        all(size <= serving.max_batch_size for size in engine.preferred_batches),
        f"preferred_batches of {engine.name} are over max_batch_size {serving.max_batch_size}",
    )
    config = pb.ModelConfig(
        name=contract.MODEL_NAME,
        backend=engine.backend,
        default_model_filename=engine.artefact,
        max_batch_size=serving.max_batch_size,
        input=[pb.ModelInput(name=contract.IMAGE, data_type=pb.TYPE_UINT8)],
        output=contract_outputs(),
        instance_group=[
            pb.ModelInstanceGroup(
                count=engine.instances, kind=_KINDS[engine.kind], profile=[engine.profile] if engine.profile else []
            )
        ],
        dynamic_batching=pb.ModelDynamicBatching(
            max_queue_delay_microseconds=engine.queue_delay_us,
            preferred_batch_size=engine.preferred_batches,
            priority_levels=ROUTINE,
            default_priority_level=ROUTINE,
            default_queue_policy=serving.routine.message(),
            priority_queue_policy={STAT: serving.stat.message()},
        ),
        # The same radiograph is rarely asked for twice, and every request would be hashed.
        response_cache=pb.ModelResponseCache(enable=False),
    )
    if engine.cuda_graphs:
        config.optimization.cuda.graphs = True
    for name, value in engine.parameters.items():
        config.parameters[name].string_value = value
    fit(config, serving)
    return config


def fit(config: pb.ModelConfig, serving: ServingConfig) -> None:
    """Set what depends on the version that is served, in place, and nothing that an operator may have tuned."""
    preprocessing = serving.preprocessing
    config.version_policy.Clear()
    if serving.version is None:
        config.version_policy.latest.num_versions = 1
    else:
        config.version_policy.specific.versions.append(serving.version)
    config.parameters[contract.PREPROCESSING_PARAMETER].string_value = preprocessing.to_json()
    config.parameters.pop(contract.CARD_PARAMETER, None)
    if serving.card is not None:
        config.parameters[contract.CARD_PARAMETER].string_value = serving.card.to_json()
    for tensor in config.input:
        tensor.dims[:] = preprocessing.shape
    del config.model_warmup[:]
    # The first call of every engine is slow, and so is the first of another size: no caller should wait for either.
    for name, size in {"one": 1, "largest": config.max_batch_size}.items():
        image = pb.ModelWarmup.Input(
            data_type=pb.TYPE_UINT8, dims=preprocessing.shape, input_data_file=warm_up_file(preprocessing.size)
        )
        config.model_warmup.append(pb.ModelWarmup(name=name, batch_size=size, inputs={contract.IMAGE: image}))


def config_text(engine: EngineConfig, serving: ServingConfig) -> str:
    """Text of `config.pbtxt` of one engine."""
    return to_text(model_config(engine, serving), engine.name)


def read_config(name: str, text: str) -> tuple[EngineConfig, ServingConfig]:
    """Read the `config.pbtxt` of an engine of `medclip`.

    Args:
        name: Name of the engine.
        text: Text of the file.

    Raises:
        BuildError: The text is not a configuration, or not of `medclip`.
    """
    config = parse_config(text)
    parameters = {key: entry.string_value for key, entry in config.parameters.items()}
    try:
        preprocessing = Preprocessing.from_json(parameters.pop(contract.PREPROCESSING_PARAMETER, ""))
    except PreprocessingMismatch as err:
        raise BuildError(f"configuration {name}: {err.message}", remedy="publish a version") from err
    card = ModelCard.from_json(parameters.pop(contract.CARD_PARAMETER, ""))
    _require(len(config.instance_group) == 1, f"{name} has {len(config.instance_group)} instance groups, not 1")
    group, batching = config.instance_group[0], config.dynamic_batching
    engine = EngineConfig(
        name,
        config.backend,
        config.default_model_filename,
        {number: kind for kind, number in _KINDS.items()}.get(group.kind, "auto"),
        group.count,
        batching.max_queue_delay_microseconds,
        tuple(batching.preferred_batch_size),
        config.optimization.cuda.graphs,
        next(iter(group.profile), ""),
        parameters,
    )
    return engine, ServingConfig(
        preprocessing,
        config.max_batch_size,
        QueuePolicy.from_message(batching.priority_queue_policy[STAT]),
        QueuePolicy.from_message(batching.default_queue_policy),
        served_version(config),
        card,
    )


def served_version(config: pb.ModelConfig) -> int | None:
    """The version that a configuration is pinned to; None = the latest."""
    pinned = config.version_policy.specific.versions
    return int(max(pinned)) if pinned else None


def embedded_file(config: pb.ModelConfig) -> str:
    """The file that the Python backend's model runs; "" for another backend."""
    if config.backend != "python":
        return ""
    engine = config.parameters["engine"].string_value if "engine" in config.parameters else EMBEDDED_ENGINE
    return EMBEDDED_ENGINES.get(engine, "")

"""The models around `medclip`, for systems that cannot prepare a radiograph themselves (Java, C#, Go).

    xray_decode/config.pbtxt, configs/<engine>.pbtxt    encoded PNG, JPEG or DICOM bytes -> `image`
    xray_metrics/config.pbtxt                           counts the answers for Prometheus
    xray_classifier/config.pbtxt                        the ensemble of them: encoded bytes -> the contract's outputs

None holds anything that a version of `medclip` brings: `xray_decode` reads the preprocessing from the configuration
of `medclip` that the same server serves (one configuration an engine, as there); the ensemble takes the version that
is live. So publishing and rolling back change no file here, and a crash can leave nothing that does not fit together.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from google.protobuf import text_format

from xray_build.artefacts import LABELS_FILE, MODEL_CODE_FILE
from xray_client import LABELS, contract
from xray_client.files import sync, write_atomically

from .model_config import ENGINES, HEATMAP_SHAPE, ROUTINE, STAT, EngineConfig, ServingConfig, pb

FRONT_MODELS = (contract.DECODE_MODEL, contract.METRICS_MODEL, contract.ENSEMBLE_MODEL)
VERSION = "1"
# The largest digital radiographs are 30 MB uncompressed; a flood of larger messages would cost memory, not accuracy.
MAX_ENCODED_MIB = 48
DECODE_WORKERS = 4

_PREFIX = ".staging-"
_DECODE_CODE = Path(__file__).parents[1] / "backends" / "decode"
_METRICS_CODE = Path(__file__).parents[1] / "backends" / "metrics"
# Triton wants a folder for the version of an ensemble, and git keeps no empty one.
_ENSEMBLE_NOTE = "An ensemble has no file of its own: see config.pbtxt.\n"


def decode_config(engine: EngineConfig, serving: ServingConfig | None = None) -> pb.ModelConfig:
    """`xray_decode` beside the `medclip` of one engine.

    Args:
        engine: Whose configuration of `medclip` it reads the preprocessing from.
        serving: Batch size and queues, which are those of `medclip`; None = the defaults.
    """
    serving = serving or ServingConfig()
    config = pb.ModelConfig(
        name=contract.DECODE_MODEL,
        backend="python",
        default_model_filename=MODEL_CODE_FILE,
        max_batch_size=serving.max_batch_size,
        input=[pb.ModelInput(name=contract.ENCODED, data_type=pb.TYPE_STRING, dims=[1])],
        # Its size is the served version's.
        output=[pb.ModelOutput(name=contract.IMAGE, data_type=pb.TYPE_UINT8, dims=[1, -1, -1])],
        instance_group=[pb.ModelInstanceGroup(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)],
        # An urgent request must not wait here either, behind routine ones that are still to be decoded.
        dynamic_batching=pb.ModelDynamicBatching(
            priority_levels=ROUTINE,
            default_priority_level=ROUTINE,
            default_queue_policy=serving.routine.message(),
            priority_queue_policy={STAT: serving.stat.message()},
        ),
    )
    values = {
        "medclip_configuration": engine.file,
        "max_encoded_mib": str(MAX_ENCODED_MIB),
        "workers": str(DECODE_WORKERS),
    }
    for name, value in values.items():
        config.parameters[name].string_value = value
    return config


def metrics_config(serving: ServingConfig | None = None) -> pb.ModelConfig:
    """`xray_metrics`: hands on what it counts, so that an ensemble has a use for it."""
    answer = {
        contract.PROBABILITY: (pb.TYPE_FP32, len(LABELS)),
        contract.DECISION: (pb.TYPE_INT32, 1),
        contract.NOVELTY: (pb.TYPE_FP32, 1),
    }
    return pb.ModelConfig(
        name=contract.METRICS_MODEL,
        backend="python",
        default_model_filename=MODEL_CODE_FILE,
        max_batch_size=(serving or ServingConfig()).max_batch_size,
        input=[pb.ModelInput(name=name, data_type=kind, dims=[size]) for name, (kind, size) in answer.items()],
        output=[pb.ModelOutput(name=name, data_type=kind, dims=[size]) for name, (kind, size) in answer.items()],
        instance_group=[pb.ModelInstanceGroup(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)],
    )


def ensemble_config(serving: ServingConfig | None = None) -> pb.ModelConfig:
    """`xray_classifier`: `encoded` through `xray_decode` and whatever version of `medclip` is live, then counted."""
    counted = {tensor.name: f"uncounted_{tensor.name}" for tensor in metrics_config(serving).input}
    return pb.ModelConfig(
        name=contract.ENSEMBLE_MODEL,
        platform="ensemble",
        max_batch_size=(serving or ServingConfig()).max_batch_size,
        input=[pb.ModelInput(name=contract.ENCODED, data_type=pb.TYPE_STRING, dims=[1])],
        output=[
            pb.ModelOutput(
                name=contract.PROBABILITY, data_type=pb.TYPE_FP32, dims=[len(LABELS)], label_filename=LABELS_FILE
            ),
            pb.ModelOutput(name=contract.DECISION, data_type=pb.TYPE_INT32, dims=[1]),
            pb.ModelOutput(name=contract.HEATMAP, data_type=pb.TYPE_FP32, dims=HEATMAP_SHAPE),
            pb.ModelOutput(name=contract.NOVELTY, data_type=pb.TYPE_FP32, dims=[1]),
        ],
        ensemble_scheduling=pb.ModelEnsembling(
            step=[
                pb.ModelEnsembling.Step(
                    model_name=contract.DECODE_MODEL,
                    model_version=-1,
                    input_map={contract.ENCODED: contract.ENCODED},
                    output_map={contract.IMAGE: contract.IMAGE},
                ),
                pb.ModelEnsembling.Step(
                    model_name=contract.MODEL_NAME,
                    model_version=-1,
                    input_map={contract.IMAGE: contract.IMAGE},
                    output_map={name: counted.get(name, name) for name in contract.OUTPUTS},
                ),
                pb.ModelEnsembling.Step(
                    model_name=contract.METRICS_MODEL,
                    model_version=-1,
                    input_map=counted,
                    output_map={name: name for name in counted},
                ),
            ]
        ),
    )


def front_files() -> dict[str, str]:
    """Text of every file of these models, by its path in the repository."""
    decode, metrics, ensemble = FRONT_MODELS
    files = {f"{decode}/{engine.file}": _text(decode_config(engine)) for engine in ENGINES}
    files[f"{metrics}/config.pbtxt"] = _text(metrics_config())
    for model, code in ((decode, _DECODE_CODE), (metrics, _METRICS_CODE)):
        files |= {f"{model}/{VERSION}/{path.name}": path.read_text() for path in sorted(code.glob("*.py"))}
    files[f"{ensemble}/config.pbtxt"] = _text(ensemble_config())
    files[f"{ensemble}/{LABELS_FILE}"] = "\n".join(LABELS) + "\n"
    files[f"{ensemble}/{VERSION}/README"] = _ENSEMBLE_NOTE
    return files


def _text(config: pb.ModelConfig) -> str:
    head = "# Written by `python -m xray_build.repository`.\n"
    return head + text_format.MessageToString(config, use_short_repeated_primitives=True)


def write_front(repository: Path, *, only_missing: bool = False) -> list[Path]:
    """Bring the models up to date: a missing one appears whole, by one rename; what is right is not touched.

    Args:
        repository: Model repository.
        only_missing: Leave a model that is there as it is, with what its operator tuned.

    Returns:
        The files that were written.
    """
    files = front_files()
    written = []
    for model in FRONT_MODELS:
        mine = {repository / name: text for name, text in files.items() if name.startswith(f"{model}/")}
        if not (repository / model).is_dir():
            _appear(repository / model, mine)
            written += list(mine)
        elif not only_missing:
            written += [path for path, text in mine.items() if write_atomically(path, text)]
    return written


def _appear(model: Path, files: dict[Path, str]) -> None:
    # Begins with a dot: no server takes it for a model.
    staged = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{model.name}-", dir=model.parent))
    try:
        staged.chmod(0o755)  # the server may be another user
        for path, text in files.items():
            target = staged / path.relative_to(model)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        for path in [*staged.rglob("*"), staged]:
            sync(path)
        staged.rename(model)
        sync(model.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def clear_front_leftovers(repository: Path) -> None:
    """Remove what a killed publisher left of `write_front`. Under the publishers' lock."""
    for staged in repository.glob(f"{_PREFIX}*"):
        shutil.rmtree(staged, ignore_errors=True)
    for model in FRONT_MODELS:
        for file in (repository / model).rglob(".*.new"):
            file.unlink()

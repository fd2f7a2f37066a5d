"""The ensemble before `medclip`, for systems that cannot prepare a radiograph themselves (Java, C#, Go).

    xray_decode/config.pbtxt, configs/<engine>.pbtxt    encoded PNG, JPEG or DICOM bytes -> `image`
    xray_metrics/config.pbtxt                           counts the answers for Prometheus
    xray_classifier/config.pbtxt                        the ensemble of them: encoded bytes -> the contract's outputs

No file of theirs depends on a version of `medclip`: `xray_decode` reads the preprocessing from the configuration of
`medclip` that the same server serves, and the ensemble takes the version that is live. So publishing and rolling back
change nothing here, and a crash leaves nothing that does not fit together.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from xray_build.artefacts import LABELS_FILE, MODEL_CODE_FILE
from xray_client import LABELS, contract
from xray_client.files import new_folder, write_atomically

from .model_config import ENGINES, ROUTINE, STAT, EngineConfig, ServingConfig, contract_outputs
from .pbtxt import to_text

ENSEMBLE_MODELS = (contract.DECODE_MODEL, contract.METRICS_MODEL, contract.ENSEMBLE_MODEL)
VERSION = "1"
# The largest digital radiographs are 30 MB uncompressed; a flood of larger messages would cost memory, not accuracy.
MAX_ENCODED_MIB = 48
DECODE_WORKERS = 4

_DECODE_CODE = Path(__file__).parents[1] / "backends" / "decode"
_METRICS_CODE = Path(__file__).parents[1] / "backends" / "metrics"
# Triton wants a folder for the version of an ensemble, and git keeps no empty one.
_ENSEMBLE_NOTE = "An ensemble has no file of its own: see config.pbtxt.\n"


def decode_config(engine: EngineConfig, serving: ServingConfig | None = None) -> pb.ModelConfig:
    """Configuration of `xray_decode` beside the `medclip` of one engine.

    Args:
        engine: Engine of the `medclip` whose configuration names the preprocessing.
        serving: Batch size and queues, the same as for `medclip`; None = the defaults.
    """
    serving = serving or ServingConfig()
    config = pb.ModelConfig(
        name=contract.DECODE_MODEL,
        backend="python",
        default_model_filename=MODEL_CODE_FILE,
        max_batch_size=serving.max_batch_size,
        input=[pb.ModelInput(name=contract.ENCODED, data_type=pb.TYPE_STRING, dims=[1])],
        # The size depends on the version that is served.
        output=[pb.ModelOutput(name=contract.IMAGE, data_type=pb.TYPE_UINT8, dims=[1, -1, -1])],
        instance_group=[pb.ModelInstanceGroup(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)],
        # A STAT request overtakes routine ones here too, before they are decoded.
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
    """Configuration of `xray_metrics`, which returns what it counts, as an ensemble needs outputs to use a step."""
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
    """Configuration of `xray_classifier`: `xray_decode`, the live version of `medclip`, then `xray_metrics`."""
    counted = {tensor.name: f"uncounted_{tensor.name}" for tensor in metrics_config(serving).input}
    return pb.ModelConfig(
        name=contract.ENSEMBLE_MODEL,
        platform="ensemble",
        max_batch_size=(serving or ServingConfig()).max_batch_size,
        input=[pb.ModelInput(name=contract.ENCODED, data_type=pb.TYPE_STRING, dims=[1])],
        output=contract_outputs(),
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


def ensemble_files() -> dict[str, str]:
    """Text of every file of these models, by its path in the repository."""
    decode, metrics, ensemble = ENSEMBLE_MODELS
    files = {f"{decode}/{engine.file}": to_text(decode_config(engine)) for engine in ENGINES}
    files[f"{metrics}/config.pbtxt"] = to_text(metrics_config())
    for model, code in ((decode, _DECODE_CODE), (metrics, _METRICS_CODE)):
        files |= {f"{model}/{VERSION}/{path.name}": path.read_text() for path in sorted(code.glob("*.py"))}
    files[f"{ensemble}/config.pbtxt"] = to_text(ensemble_config())
    files[f"{ensemble}/{LABELS_FILE}"] = "\n".join(LABELS) + "\n"
    files[f"{ensemble}/{VERSION}/README"] = _ENSEMBLE_NOTE
    return files


def write_ensemble(repository: Path, *, only_missing: bool = False) -> list[Path]:
    """Bring the models up to date: a missing one appears whole, in one step; a file that is right is not touched.

    Args:
        repository: Model repository.
        only_missing: Leave a model that exists as its operator tuned it.

    Returns:
        The files that were written.
    """
    files = ensemble_files()
    written = []
    for model in ENSEMBLE_MODELS:
        texts = {name.partition("/")[2]: text for name, text in files.items() if name.startswith(f"{model}/")}
        if not (repository / model).is_dir():
            # Hidden until it is complete: no server takes a folder that begins with a dot for a model.
            with new_folder(repository / model) as unfinished:
                for name, text in texts.items():
                    (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                    (unfinished / name).write_text(text)
            written += [repository / model / name for name in texts]
        elif not only_missing:
            written += [
                repository / model / name
                for name, text in texts.items()
                if write_atomically(repository / model / name, text)
            ]
    return written


def clear_ensemble_leftovers(repository: Path) -> None:
    """Remove what a killed publisher left of `write_ensemble`. Call it under the publishers' lock."""
    for model in ENSEMBLE_MODELS:
        for unfinished in repository.glob(f".{model}.*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        for file in (repository / model).rglob(".*.new"):
            file.unlink()

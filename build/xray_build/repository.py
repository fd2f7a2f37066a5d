"""Triton model configurations: a plain dataclass -> `config.pbtxt` and back, through Triton's own protobuf schema.

    python -m xray_build.repository --repository model_repository      # writes what is committed there

One model, one configuration per engine (`--model-config-name`):

    configs/onnx.pbtxt        ONNX Runtime backend, in any Triton container
    configs/embedded.pbtxt    Python backend over ONNX Runtime, for the local server
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from xray_client import LABELS, Preprocessing, contract

from ._errors import BuildError

LABELS_FILE = "labels.txt"
CONFIGS_FOLDER = "configs"
HEATMAP_SHAPE = (7, 7)


@dataclass(frozen=True)
class EngineConfig:
    """What differs between the engines.

    Args:
        name: Name of the configuration.
        backend: Triton backend.
        artefact: File in the version directory that the backend loads.
        parameters: Backend parameters.
    """

    name: str
    backend: str
    artefact: str
    parameters: Mapping[str, str] = field(default_factory=dict)


ENGINES = (
    EngineConfig("onnx", "onnxruntime", "model.onnx"),
    EngineConfig("embedded", "python", "model.py"),
)


@dataclass(frozen=True)
class ServingConfig:
    """How the model is served, whatever the engine.

    Args:
        preprocessing: Record that clients must prepare radiographs by; part of the served parameters.
        max_batch_size: Largest batch that the dynamic batcher makes.
        queue_delay_us: How long a request may wait for company, microseconds; 0 = never on purpose.
    """

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    max_batch_size: int = 32
    queue_delay_us: int = 0

    def __post_init__(self) -> None:
        if self.max_batch_size < 1 or self.queue_delay_us < 0:
            raise BuildError("max_batch_size must be at least 1 and queue_delay_us at least 0")


def model_config(engine: EngineConfig, serving: ServingConfig) -> pb.ModelConfig:
    """The configuration of one engine as Triton's own message."""
    config = pb.ModelConfig(
        name=contract.MODEL_NAME,
        backend=engine.backend,
        default_model_filename=engine.artefact,
        max_batch_size=serving.max_batch_size,
        input=[pb.ModelInput(name=contract.IMAGE, data_type=pb.TYPE_UINT8, dims=serving.preprocessing.shape)],
        output=[
            pb.ModelOutput(
                name=contract.PROBABILITY, data_type=pb.TYPE_FP32, dims=[len(LABELS)], label_filename=LABELS_FILE
            ),
            pb.ModelOutput(name=contract.DECISION, data_type=pb.TYPE_INT32, dims=[1]),
            pb.ModelOutput(name=contract.HEATMAP, data_type=pb.TYPE_FP32, dims=HEATMAP_SHAPE),
            pb.ModelOutput(name=contract.NOVELTY, data_type=pb.TYPE_FP32, dims=[1]),
        ],
        instance_group=[pb.ModelInstanceGroup(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)],
        dynamic_batching=pb.ModelDynamicBatching(max_queue_delay_microseconds=serving.queue_delay_us),
    )
    config.version_policy.latest.num_versions = 1
    config.parameters[contract.PREPROCESSING_PARAMETER].string_value = serving.preprocessing.to_json()
    for name, value in engine.parameters.items():
        config.parameters[name].string_value = value
    return config


def config_text(engine: EngineConfig, serving: ServingConfig) -> str:
    """`config.pbtxt` of one engine."""
    head = f"# Written by `python -m xray_build.repository`: engine {engine.name}.\n"
    return head + text_format.MessageToString(model_config(engine, serving), use_short_repeated_primitives=True)


def parse_config(text: str) -> pb.ModelConfig:
    """Read a `config.pbtxt`; a field that Triton's schema does not have raises `BuildError`."""
    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as err:
        raise BuildError(f"not a Triton model configuration: {err}") from err


def write_configs(repository: Path, serving: ServingConfig) -> list[Path]:
    """Bring the model's configurations up to date; files that are right already are not touched.

    Returns:
        The files that were written.
    """
    model = repository / contract.MODEL_NAME
    files = {model / CONFIGS_FOLDER / f"{engine.name}.pbtxt": config_text(engine, serving) for engine in ENGINES}
    files[model / LABELS_FILE] = "\n".join(LABELS) + "\n"
    written = []
    for path, text in files.items():
        if path.is_file() and path.read_text() == text:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.new")
        staged.write_text(text)
        staged.replace(path)
        written.append(path)
    return written


@click.command(help="Write the model's configurations, as they are committed.")
@click.option("--repository", type=click.Path(path_type=Path), default=Path("model_repository"), show_default=True)
def main(repository: Path) -> None:
    """Command line."""
    for path in write_configs(repository, ServingConfig()):
        click.echo(f"wrote {path}")


if __name__ == "__main__":
    main()

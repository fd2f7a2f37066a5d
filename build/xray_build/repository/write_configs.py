"""Write every configuration of a model repository: of `medclip`, and of the ensemble before it.

    python -m xray_build.repository --repository model_repository

The committed configurations are those of the reference model that comes with the project, so serving it changes nothing
in git. In a repository that serves another version, that version's preprocessing and card are kept.
"""

from __future__ import annotations

from pathlib import Path

import click

from xray_build.artefacts import LABELS_FILE
from xray_build.errors import BuildError
from xray_client import LABELS, Preprocessing, contract
from xray_client.console import plain_errors
from xray_client.files import sha256, write_atomically
from xray_client.parsing import parse_json

from .card import card_of
from .configurations import serving_of
from .ensemble import write_ensemble
from .model_config import ENGINES, ServingConfig, config_text


def reference_serving(checkpoint: Path) -> ServingConfig:
    """Preprocessing and card of the reference model.

    Args:
        checkpoint: Its folder, with `config.json` and `model.safetensors`.

    Raises:
        BuildError: The checkpoint is missing or damaged.
    """
    try:
        config = parse_json((checkpoint / "config.json").read_text())
        weights = "model.safetensors"
        about = config["about"] | {"checkpoint": {weights: sha256(checkpoint / weights)}}
        return ServingConfig(Preprocessing(**config["model"]["preprocessing"]), card=card_of(about))
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise BuildError(f"cannot be read: {err!r}", source=str(checkpoint), remedy="name it with --reference") from err


def write_configs(repository: Path, serving: ServingConfig) -> list[Path]:
    """Bring the configurations and labels of `medclip` up to date; a file that is right already is not touched.

    Returns:
        The files that were written.
    """
    model = repository / contract.MODEL_NAME
    files = {model / engine.file: config_text(engine, serving) for engine in ENGINES}
    files[model / LABELS_FILE] = "\n".join(LABELS) + "\n"
    return [path for path, text in files.items() if write_atomically(path, text)]


@click.command(context_settings={"show_default": True})
@click.option(
    "--repository", type=click.Path(path_type=Path), default=Path("model_repository"), help="Triton model repository."
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    default=Path("finetune/reference"),
    help="Checkpoint of the reference model, used where no version is served yet.",
)
def main(repository: Path, reference: Path) -> None:
    """Write the models' configurations: for the version that is served, else for the reference model."""
    with plain_errors():
        serving = serving_of(repository) or reference_serving(reference)
        for path in [*write_configs(repository, serving), *write_ensemble(repository)]:
            click.echo(f"wrote {path}")

"""Export a run's checkpoint to one ONNX graph, compare it with PyTorch, and publish it for serving.

python -m finetune.export runs/latest --repository model_repository
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np

from xray_build.console import plain_errors
from xray_build.onnx_graph import check_parity, export_onnx
from xray_build.publish import Publication, staged_version
from xray_client import RESEARCH_USE

from .errors import CheckpointError


def export_and_publish(run: Path, repository: Path) -> Publication:
    """Publish the checkpoint of a run folder (or a checkpoint folder) as the next version; says what it did.

    Raises:
        CheckpointError: No usable checkpoint there.
        BuildError: The graph differs from PyTorch, or the repository cannot be written.
    """
    from .experiment import PARITY_FILE
    from .served import CONFIG_FILE, WEIGHTS_FILE, load_checkpoint

    folder = run / "checkpoint" if (run / "checkpoint").is_dir() else run
    model, about = load_checkpoint(folder)
    try:
        images = np.load(folder / PARITY_FILE, allow_pickle=False)
    except (OSError, ValueError) as err:
        raise CheckpointError(f"{PARITY_FILE} cannot be read: {err}", source=str(folder), remedy="train again") from err
    with staged_version(repository) as stage:
        export_onnx(model, images[:2], stage.folder / "model.onnx")
        parity = check_parity(model, stage.folder / "model.onnx", images)
        click.echo(f"ONNX agrees with PyTorch on {len(images)} radiographs: {parity}")
        publication = stage.publish(
            preprocessing=model.classifier.config.preprocessing,
            about={
                **about,
                "parity": parity.as_dict(),
                "checkpoint": {
                    name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
                    for name in (WEIGHTS_FILE, CONFIG_FILE)
                },
                "built_with": {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
            },
        )
    click.echo(f"published version {publication.version}: {publication.folder}")
    return publication


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.argument("run", type=click.Path(path_type=Path), default=Path("runs/latest"))
@click.option(
    "--repository", type=click.Path(path_type=Path), default=Path("model_repository"), help="Triton model repository."
)
def main(run: Path, repository: Path) -> None:
    """Command line; see the module's text."""
    with plain_errors():
        export_and_publish(run, repository)
        click.echo(RESEARCH_USE)


if __name__ == "__main__":
    main()

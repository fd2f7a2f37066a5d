"""Export a run's checkpoint to one ONNX graph, compare it with PyTorch, and publish it for serving.

python -m finetune.export runs/latest --repository model_repository
python -m finetune.export reference            # the model that comes with the project
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
from PIL import Image

from xray_build.console import plain_errors
from xray_build.onnx_graph import check_parity, export_onnx
from xray_build.publish import Publication, staged_version, versions
from xray_client import RESEARCH_USE, Preprocessing

from .errors import CheckpointError

PHANTOMS = 16  # to compare on where there are no radiographs


def export_and_publish(run: Path, repository: Path) -> Publication:
    """Publish the checkpoint of a run folder (or a checkpoint folder) as the next version; says what it did.

    Raises:
        CheckpointError: No usable checkpoint there.
        BuildError: The graph differs from PyTorch, or the repository cannot be written.
    """
    from .served import checkpoint_folder, checkpoint_hashes, load_checkpoint

    folder = checkpoint_folder(run)
    model, about = load_checkpoint(folder)
    images, what = _examples(folder, model.classifier.config.preprocessing)
    with staged_version(repository) as stage:
        export_onnx(model, images[:2], stage.folder / "model.onnx")
        parity = check_parity(model, stage.folder / "model.onnx", images)
        click.echo(f"ONNX agrees with PyTorch on {len(images)} {what}: {parity}")
        publication = stage.publish(
            preprocessing=model.classifier.config.preprocessing,
            about={
                **about,
                "parity": parity.as_dict(),
                "checkpoint": checkpoint_hashes(folder),
                "built_with": {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
            },
        )
    click.echo(f"published version {publication.version}: {publication.folder}")
    return publication


def _examples(folder: Path, preprocessing: Preprocessing) -> tuple[np.ndarray, str]:
    """Radiographs to compare on, uint8 (n, 1, s, s): the run's own, or phantoms for a checkpoint that carries none."""
    from .experiment import PARITY_FILE
    from .phantom import draw_phantom

    path = folder / PARITY_FILE
    if not path.exists():
        drawn = [draw_phantom(0, i, pneumonia=i % 2 == 1, patient=i) for i in range(PHANTOMS)]
        return np.stack([preprocessing.apply(Image.fromarray(image)) for image in drawn]), "phantoms"
    try:
        return np.load(path, allow_pickle=False), "radiographs"
    except (OSError, ValueError) as err:
        raise CheckpointError(f"{PARITY_FILE} cannot be read: {err}", source=str(folder), remedy="train again") from err


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.argument("run", type=click.Path(path_type=Path), default=Path("runs/latest"))
@click.option(
    "--repository", type=click.Path(path_type=Path), default=Path("model_repository"), help="Triton model repository."
)
@click.option("--unless-published", is_flag=True, help="Leave a repository alone that has a version already.")
def main(run: Path, repository: Path, unless_published: bool) -> None:
    """Command line; see the module's text."""
    with plain_errors():
        if unless_published and versions(repository):
            return
        export_and_publish(run, repository)
        click.echo(RESEARCH_USE)


if __name__ == "__main__":
    main()

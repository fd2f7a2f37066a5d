"""Export a run's checkpoint to one ONNX graph, compare it with PyTorch, and publish it for serving.

python -m finetune.export runs/latest --repository model_repository
python -m finetune.export reference            # the model that comes with the project
python -m finetune.export runs/latest --steps fp16,plan,int8 --validation chest_xray --splits runs/latest/splits.csv
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from xray_build.engines.calibration_set import read_calibration
from xray_build.engines.pipeline import STEPS, build
from xray_build.repository.publish import Publication, staged_version, versions
from xray_client import RESEARCH_USE
from xray_client.console import plain_errors

from .data.labels import LABELS_HELP

# A version holds only artefacts that Triton serves.
PUBLISHED_STEPS = tuple(step for step in STEPS if step != "rtx")


def export_and_publish(
    run: Path,
    repository: Path,
    *,
    steps: Sequence[str] = ("onnx",),
    images: Path | None = None,
    validation: Path | None = None,
    splits: Path | None = None,
    labels: str | None = None,
) -> Publication:
    """Publish the checkpoint of a run folder (or a checkpoint folder) as the next version, and print each step.

    Args:
        run: Run folder, checkpoint folder, or `reference`.
        repository: Triton model repository.
        steps: Some of `PUBLISHED_STEPS`; see `xray_build.engines.pipeline`.
        images: Calibration set; None = the radiographs that the run kept, or else phantoms.
        validation: Labelled radiographs for int8, see `plugin.labelled`.
        labels: Classes of the names of folders, as for `finetune.run`.
        splits: A run's `splits.csv`: only its validation part is used.

    Raises:
        CheckpointError: There is no usable checkpoint.
        BuildError: A step differs too much from the one before, or the repository cannot be written.
    """
    from .plugin import labelled
    from .plugin import model as buildable

    model = buildable(run)
    chosen = read_calibration(images, model.preprocessing) if images else model.own_images
    radiographs = labelled(validation, splits, model.preprocessing, labels) if validation else None
    with staged_version(repository) as stage:
        record = build(model, chosen, stage.folder, steps, validation=radiographs, say=click.echo)
        publication = stage.publish(preprocessing=model.preprocessing, images=chosen.images, about=record.about)
    click.echo(str(publication))
    return publication


def parse_steps(text: str) -> tuple[str, ...]:
    """Split the comma-separated steps of the option `--steps`."""
    steps = tuple(step.strip() for step in text.split(",") if step.strip())
    if unknown := [step for step in steps if step not in PUBLISHED_STEPS]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(PUBLISHED_STEPS)}", param_hint="--steps")
    return steps


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.argument("run", type=click.Path(path_type=Path), default=Path("runs/latest"))
@click.option(
    "--repository", type=click.Path(path_type=Path), default=Path("model_repository"), help="Triton model repository."
)
@click.option(
    "--steps",
    default="onnx",
    help=f"Steps to build, comma-separated: {', '.join(PUBLISHED_STEPS)}.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True),
    default=None,
    help="Calibration set: folder, table or .npy.  [default: the radiographs that the run kept, or else phantoms]",
)
@click.option(
    "--validation",
    type=click.Path(path_type=Path, exists=True),
    default=None,
    help="Labelled radiographs, for int8.",
)
@click.option(
    "--splits", type=click.Path(path_type=Path, exists=True), default=None, help="splits.csv of a run, for int8."
)
@click.option("--labels", help=f"{LABELS_HELP} For --validation.")
@click.option("--unless-published", is_flag=True, help="Do nothing if the repository has a version already.")
def main(
    run: Path,
    repository: Path,
    steps: str,
    images: Path | None,
    validation: Path | None,
    splits: Path | None,
    labels: str | None,
    unless_published: bool,
) -> None:
    """Run the command line; see the module's text."""
    wanted = parse_steps(steps)
    with plain_errors():
        if unless_published and versions(repository):
            return
        export_and_publish(
            run, repository, steps=wanted, images=images, validation=validation, splits=splits, labels=labels
        )
        click.echo(RESEARCH_USE)


if __name__ == "__main__":
    main()

"""The commands on a model repository: publish, verify, versions, rollback. Part of `python -m xray_build`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from xray_build.artefacts import (
    BUILD_RECORD_FILE,
    FP16_FILE,
    INT8_FILE,
    INT8_WEIGHTS_FILE,
    KNOWN_ANSWERS_FILE,
    MANIFEST_FILE,
    MODEL_CODE_FILE,
    ONNX_FILE,
    PLAN_FILE,
)
from xray_build.errors import BuildError
from xray_client import RESEARCH_USE, Preprocessing, PreprocessingMismatch, contract
from xray_client.cli.options import security_options
from xray_client.console import plain_errors, signals_interrupt

from . import publish as publishing
from .atomic import writing
from .configurations import served
from .model_config import ENGINES
from .publish import read_build, staged_version
from .remote import DEFAULT_TIMEOUT_S, Access
from .verify import verify as verify_version
from .versions import VersionLog, read_manifest

_CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True}
# Entries that a publication writes itself; every other one describes the model and is copied.
_OWN = {"manifest_version", "model", "labels", "preprocessing", "published", "files", "notice", "build"}
# Files that are published from a build's folder. An engine for RTX cards is not: Triton does not serve it.
PUBLISHED = (ONNX_FILE, FP16_FILE, PLAN_FILE, INT8_FILE, INT8_WEIGHTS_FILE, KNOWN_ANSWERS_FILE, BUILD_RECORD_FILE)

_repository = click.option(
    "--repository", type=click.Path(path_type=Path), default=Path("model_repository"), help="Triton model repository."
)
_url = click.option("--url", help="host:port of a running Triton that serves this repository: load it there at once.")
_timeout = click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=DEFAULT_TIMEOUT_S,
    help="Limit on each load and on the wait for an answer, seconds.",
)


@click.command(context_settings=_CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path))
@_repository
@_url
@_timeout
@security_options
def publish(folder: Path, repository: Path, url: str | None, timeout: float, **access: Any) -> None:
    """Publish FOLDER as the next version: a build's folder, or a version of another repository.

    With --url the version must have the preprocessing of the live one; otherwise publish without, then restart.

    Where the server restricts administrative calls, its key is read from TRITON_ADMIN_KEY.
    """
    with plain_errors(), signals_interrupt():
        preprocessing, about = read_source(folder)
        with staged_version(repository) as stage:
            with writing(stage.folder):
                for name in PUBLISHED:
                    if (folder / name).is_file():
                        shutil.copyfile(folder / name, stage.folder / name)
            done = stage.publish(
                preprocessing=preprocessing, about=about, url=url, timeout_s=timeout, access=Access(**access)
            )
        click.echo(str(done))
        click.echo(f"it gives its known answers at {url}" if url else "a server that is started now will serve it")
        click.echo(RESEARCH_USE)


def read_source(folder: Path) -> tuple[Preprocessing, dict[str, Any]]:
    """Read the preprocessing and the description of a model that is to be published.

    Args:
        folder: A version of a repository, by its `manifest.json`; or a build, by `preprocessing` and, where it has one,
            `about` in its `build.json`.

    Raises:
        BuildError: The folder is neither.
    """
    if not (folder / ONNX_FILE).is_file():
        raise BuildError(f"has no {ONNX_FILE}", source=str(folder), remedy="name the folder that a build filled")
    if (folder / MANIFEST_FILE).is_file():
        manifest = read_manifest(folder)
        record, about = manifest["preprocessing"], {k: v for k, v in manifest.items() if k not in _OWN}
    else:
        build = read_build(folder)
        record, about = build.get("preprocessing"), build.get("about", {})
    try:
        return Preprocessing(**record), about
    except (TypeError, PreprocessingMismatch) as err:
        raise BuildError(
            f"does not say how its radiographs are prepared: {err}",
            source=str(folder),
            remedy="build it again with this release",
        ) from err


@click.command(context_settings=_CONTEXT)
@click.argument("version", type=click.IntRange(1), required=False)
@_repository
@click.option(
    "--engine",
    type=click.Choice([engine.name for engine in ENGINES]),
    show_default="any that this machine can run",
    help="Engine that is to serve it on this machine.",
)
def verify(version: int | None, repository: Path, engine: str | None) -> None:
    """Check VERSION (the served one) before a server loads it: files, configuration, TensorRT, CUDA and GPU."""
    with plain_errors():
        checked = verify_version(repository, version, engine=engine or "")
        for problem in checked.problems:
            click.echo(f"{'WRONG' if problem.serious else 'note'}  {problem.source}: {problem.message}")
        if not checked.sound:
            raise BuildError(f"version {checked.version} is not fit to be served", source=str(repository))
        click.echo(f"version {checked.version} is unchanged and fits this machine")


@click.command(context_settings=_CONTEXT)
@_repository
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    help="A table for people, JSON for programs.",
)
def versions(repository: Path, form: str) -> None:
    """List the versions: publication date, checkpoint, AUROC, artefacts, and which one is live."""
    with plain_errors():
        rows = listed(repository)
        if form == "json":
            click.echo(json.dumps(rows, indent=2))
            return
        if not rows:
            click.echo(f"{repository} has no version")
            return
        table = Table("version", "published", "state", "checkpoint", "AUROC (95 % interval)", "artefacts")
        for row in rows:
            auroc = row["auroc"]
            quality = f"{auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f})" if auroc else ""
            table.add_row(str(row["version"]), row["published"], row["state"], (row["checkpoint"] or "")[:12], quality,
                          ", ".join(row["artefacts"]))  # fmt: skip
        out = Console(highlight=False, markup=False)
        if not out.is_terminal:
            out.width = 160
        out.print(table)


def listed(repository: Path) -> list[dict[str, Any]]:
    """Describe every version, oldest first; one whose manifest cannot be read is listed as damaged."""
    by_engine, withdrawn = served(repository), VersionLog.load(repository).withdrawn
    rows = []
    for version in publishing.versions(repository):
        engines = [name for name, live in by_engine.items() if live == version]
        state = "live" if engines else "withdrawn" if version in withdrawn else ""
        if not state and version > max(by_engine.values(), default=version):
            state = "not live yet"
        if engines and len(engines) < len(by_engine):
            state = f"live for {', '.join(engines)}"
        try:
            manifest = read_manifest(repository / contract.MODEL_NAME / str(version))
        except BuildError:
            manifest, state = {"files": {}}, f"{state} damaged".strip()
        checkpoint = manifest.get("checkpoint")
        rows.append(
            {
                "version": version,
                "published": manifest.get("published", ""),
                "state": state,
                "withdrawn": withdrawn.get(version),
                "checkpoint": checkpoint.get("model.safetensors") if isinstance(checkpoint, dict) else None,
                "auroc": _auroc(manifest),
                "artefacts": sorted(
                    name for name in manifest["files"] if name.startswith("model") and name != MODEL_CODE_FILE
                ),
            }
        )
    return rows


def _auroc(manifest: dict[str, Any]) -> dict[str, float] | None:
    """AUROC after training, on test if there was one, else on validation."""
    metrics: Any = manifest.get("metrics")
    for split in ("test", "val", "validation"):  # "validation" is the key of earlier releases
        try:
            auroc = metrics[split]["after"]["auroc"]
            return {name: float(auroc[name]) for name in ("value", "low", "high")}
        except (KeyError, TypeError, ValueError):
            continue
    return None


@click.command(context_settings=_CONTEXT)
@click.option(
    "--to",
    type=click.IntRange(1),
    show_default="the newest before the live one that was not withdrawn",
    help="Version to serve.",
)
@_repository
@_url
@_timeout
@security_options
def rollback(to: int | None, repository: Path, url: str | None, timeout: float, **access: Any) -> None:
    """Serve an earlier version again; the next publication is served in its turn.

    With --url the version must have the preprocessing of the live one; otherwise roll back without, then restart.

    Where the server restricts administrative calls, its key is read from TRITON_ADMIN_KEY.
    """
    with plain_errors(), signals_interrupt():
        version = publishing.rollback(repository, to=to, url=url, timeout_s=timeout, access=Access(**access))
        live = f"it gives its known answers at {url}" if url else "a server that is started now will serve it"
        click.echo(f"rolled back to version {version}: {live}")


commands: tuple[click.Command, ...] = (publish, verify, versions, rollback)

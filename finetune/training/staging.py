"""Run folders that get their name when they are complete, and can be resumed before."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from filelock import FileLock, Timeout

from finetune.run_folder import LATEST, RESUME_FOLDER, SETTINGS_FILE
from finetune.settings import RunSettings
from xray_client.console import console

from .hardware import rank

LOCK_FILE = "lock"  # in the resume folder
_STAGING = "MEDCLIP_TRITON_STAGING"


@contextmanager
def staged(settings: RunSettings, resume: Path | None) -> Iterator[tuple[Path, Path]]:
    """Name the run folder once the run is complete; one that stops keeps what it takes to resume, or nothing at all.

    Yields:
        The folder to write into, and the name that it gets in the end.

    Raises:
        click.ClickException: `resume` is no interrupted run, or still under way; or this run was interrupted.
    """
    out = settings.output.out
    if rank() > 0:  # trains along; the first process speaks and writes
        console.quiet = True
        staging = Path(os.environ.get(_STAGING) or out / f".rank{rank()}.partial")
        yield staging, staging
        return
    staging = resume or out / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{os.getpid()}.partial"
    folder = out / re.sub(r"(-\d+)?\.partial$", "", staging.name)
    state = staging / RESUME_FOLDER
    if resume and not state.is_dir():
        raise click.ClickException(f"{resume} holds no interrupted run")
    os.environ[_STAGING] = str(staging)  # for the processes that train along
    state.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state / LOCK_FILE)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise click.ClickException(f"{staging} is still under way") from None
    try:
        (staging / SETTINGS_FILE).write_text(json.dumps(settings.as_flat(), indent=2) + "\n")
        yield staging, folder
        staging.rename(folder)
    except BaseException as err:
        if any(state.glob("*.ckpt")):
            console.print(f"go on with: python -m finetune.run --resume {staging}")
        else:
            shutil.rmtree(staging, ignore_errors=True)
        if isinstance(err, KeyboardInterrupt):
            raise click.ClickException("interrupted") from None
        raise
    finally:
        lock.release()


def point_latest_to(folder: Path) -> None:
    """Make the link `latest` beside a run folder point to it."""
    link = folder.parent / f".{LATEST}-{os.getpid()}"
    link.symlink_to(folder.name)
    link.replace(folder.parent / LATEST)

"""Shared helpers for the tests of a build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner, Result

from xray_build.cli import main


def xray_build(*words: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(word) for word in words])


@dataclass(frozen=True)
class Answer:
    """Exit code and output of a command."""

    exit_code: int
    output: str


@dataclass(frozen=True)
class Built:
    """A build folder, and what each command of `xray-build` answered."""

    folder: Path
    answers: dict[str, Answer]

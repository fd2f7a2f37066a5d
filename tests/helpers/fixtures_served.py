"""Fixtures: a tiny model that is trained for real, exported, and served by a real Triton."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.helpers.once import made_once


@pytest.fixture(scope="session")
def trained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a model trained for one epoch, through the command line."""
    from finetune.run import main

    def train(out: Path) -> None:
        options = ["--data", phantoms, "--out", out, "--epochs", 1, "--head-epochs", 10, "--no-publish"]
        result = CliRunner().invoke(main, [str(option) for option in options])
        assert result.exit_code == 0, result.output

    return (made_once(tmp_path_factory, "runs", train) / "latest").resolve()


@pytest.fixture(scope="session")
def repository(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model repository in which the trained model is version 1."""
    from finetune.export import export_and_publish

    folder = tmp_path_factory.mktemp("served") / "model_repository"
    export_and_publish(trained, folder)
    return folder


@pytest.fixture(scope="session")
def triton(repository: Path) -> Iterator[str]:
    """Address of a real Triton that serves `repository`."""
    from xray_build.triton.server import TritonServer

    with TritonServer(repository, port=0, metrics_port=0) as server:
        yield server.url

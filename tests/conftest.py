"""What all layers share: real radiographs, phantoms, one tiny model trained for real, and one real Triton."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

# A shell that starts the tests in the background has Ctrl-C ignored, and every program they start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
REAL_DATA = ROOT.parent / "shared" / "data"


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Say how a process of pytest-xdist ended that should not have, which pytest-xdist itself does not."""
    if error is None:
        return
    try:
        code = node.gateway._io.popen.wait(10)
        how = f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    except subprocess.TimeoutExpired:
        how = "runs on, and says no more"
    counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    print(f"\n{node.gateway.id} {how}; ended by the kernel for memory: {counters['oom_kill']}", file=sys.stderr)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real radiographs; tests that need it are skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real radiographs at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of phantom radiographs in the Kaggle layout."""
    from finetune.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("phantoms") / "chest_xray"
    write_phantoms(folder, count=260)
    return folder


@pytest.fixture(scope="session")
def trained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a model trained for one epoch, through the command line."""
    from finetune.run import main

    out = tmp_path_factory.mktemp("runs")
    options = ["--data", phantoms, "--out", out, "--epochs", 1, "--head-epochs", 10, "--no-publish"]
    result = CliRunner().invoke(main, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    return (out / "latest").resolve()


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

"""Installed packages leave Python's standard library alone; `medclip` brings one that is named `asyncio`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from tests.helpers.echo import write_model
from xray_build.triton.server import TritonServer

SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
STANDARD = str(Path(sysconfig.get_path("stdlib")) / "asyncio" / "__init__.py")
TELL = "import asyncio; print(asyncio.__file__)"

# Writes down which asyncio the interpreter of Triton's Python backend has.
TELLS_ASYNCIO = """
import asyncio
from pathlib import Path

class TritonPythonModel:
    def initialize(self, args):
        (Path(__file__).parent / "asyncio").write_text(asyncio.__file__)

    def execute(self, requests):
        return []
"""


def test_no_installed_module_is_named_as_one_of_the_standard_library() -> None:
    installed = {path.name.split(".")[0] for path in SITE_PACKAGES.iterdir() if path.suffix in ("", ".py", ".so")}
    assert "xray_client" not in sys.stdlib_module_names
    assert "numpy" in installed
    assert not installed & sys.stdlib_module_names


def test_the_asyncio_package_that_medclip_brings_holds_no_module() -> None:
    try:
        files = distribution("asyncio").files or []
    except PackageNotFoundError:
        return
    assert {file.parts[0] for file in files} == {f"asyncio-{distribution('asyncio').version}.dist-info"}


def test_the_asyncio_of_this_test_run_is_pythons_own() -> None:
    assert asyncio.__file__ == STANDARD


@pytest.mark.parametrize("environment", [{}, {"PYTHONPATH": str(SITE_PACKAGES)}], ids=["plain", "PYTHONPATH"])
@pytest.mark.parametrize("start", ["-c", "-I -c", "-m", "console script"])
def test_every_way_to_start_python_finds_its_own_asyncio(
    start: str, environment: dict[str, str], tmp_path: Path
) -> None:
    if start == "-m":
        (tmp_path / "tell.py").write_text(TELL)
        command = [sys.executable, "-m", "tell"]
    elif start == "console script":
        script = tmp_path / "tell"
        script.write_text(f"#!{sys.executable}\n{TELL}\n")
        script.chmod(0o755)
        command = [str(script)]
    else:
        command = [sys.executable, *start.split(), TELL]
    env = {**os.environ, **environment}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == STANDARD


@pytest.mark.parametrize("path", [None, SITE_PACKAGES], ids=["plain", "PYTHONPATH"])
def test_models_in_tritons_python_backend_have_pythons_own_asyncio(
    path: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path:
        monkeypatch.setenv("PYTHONPATH", str(path))
    folder = write_model(tmp_path / "repository", "tells", TELLS_ASYNCIO)
    with TritonServer(tmp_path / "repository", port=0, metrics_port=0):
        assert (folder / "asyncio").read_text() == STANDARD

"""The base install in a clean environment: it classifies, and each of its console scripts starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.radiographs import grey
from xray_client import XrayClient
from xray_client.testing import FakeServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=["numpy==1.26.4", "numpy>=2,<3"])
def base_install(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of a clean environment that has this project and what its base install asks for."""
    folder = tmp_path_factory.mktemp("base")
    programs = folder / "venv" / "bin"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("numpy==")]
    (folder / "constraints.txt").write_text("\n".join(pins))
    install = [programs / "pip", "install", "--quiet", "--constraint", folder / "constraints.txt", request.param, ROOT]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if any(words in done.stderr for words in ("Failed to establish a new connection", "Connection refused")):
        pytest.skip("pip reaches no package index here")
    assert done.returncode == 0, done.stderr
    return programs


def _run(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    words = [str(folder / str(command[0])), *map(str, command[1:])]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120, cwd=folder, env=inherited)


@pytest.mark.slow
def test_the_base_install_alone_classifies_an_image(fake: FakeServer, base_install: Path, tmp_path: Path) -> None:
    listed = json.loads(_run(base_install, "pip", "list", "--format", "json").stdout)
    heavy = {"torch", "medclip", "asyncio", "wget", "googletrans", "gensim", "onnxruntime", "nvidia-pytriton"}
    assert not heavy & {entry["name"].lower() for entry in listed}
    image = tmp_path / "a.png"
    Image.fromarray(grey(51, (300, 200))).save(image)
    done = _run(base_install, "xray-client", "classify", "--url", fake.url, "--format", "jsonl", image)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["file"], answer["finding"], answer["version"]) == (str(image), "Normal", "1")
    with XrayClient(fake.url) as client:
        assert answer["probability"] == pytest.approx(client.classify(image).probability, abs=1e-6)


@pytest.mark.slow
def test_every_console_script_of_the_base_install_starts_and_names_the_extra_that_it_needs(base_install: Path) -> None:
    points = "from importlib.metadata import distribution; points = distribution('medclip-triton').entry_points"
    show = f"{points}; print(*(point.name for point in points if point.group == 'console_scripts'))"
    scripts = _run(base_install, "python", "-c", show).stdout.split()
    assert {"xray-client", "xray-build", "xray-server"} <= set(scripts)
    for script in scripts:
        for option in ("--help", "--version"):
            done = _run(base_install, script, option)
            assert (done.returncode, done.stderr) == (0, ""), script
    for command, extra in (
        (("xray-build", "onnx", "reference", "--out", "build"), "build"),
        (("xray-build", "versions", "--help"), "build"),
        (("xray-server",), "server"),
    ):
        done = _run(base_install, *command)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert f"medclip-triton[{extra}]" in line


@pytest.mark.slow
def test_every_module_of_the_training_names_the_extra_that_it_needs(base_install: Path, tmp_path: Path) -> None:
    modules = [path.stem for path in sorted((ROOT / "finetune").glob("*.py")) if "__main__" in path.read_text()]
    assert {"run", "tune", "evaluate", "export", "audit", "demo", "phantom"} <= set(modules)
    calls = [(module, "--help") for module in modules]
    for module, *options in [*calls, ("run", "--data", tmp_path), ("evaluate", "--data", tmp_path)]:
        done = _run(base_install, "python", "-m", f"finetune.{module}", *options)
        if done.returncode == 0:
            assert (options, done.stderr) == (["--help"], "")
        else:
            assert done.returncode == 1
            (line,) = done.stderr.splitlines()
            assert re.fullmatch(
                r"Error: .* needs \w+, which is not installed: pip install 'medclip-triton\[train\]'", line
            )

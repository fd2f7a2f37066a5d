"""Publishers and rollbacks that are killed, or find the disk full, at every single step that touches the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.small_graph import publish_small
from xray_build.repository.configurations import configs, served
from xray_build.repository.model_config import ENGINES
from xray_build.repository.publish import rollback, versions
from xray_build.repository.verify import verify
from xray_build.repository.versions import read_manifest
from xray_build.triton.server import TritonServer
from xray_client import Preprocessing, XrayClient, contract

ROOT = Path(__file__).resolve().parents[3]
# Each publication that is interrupted wants its radiographs prepared in another way than the live version.
ACTIONS = (
    ("publish", "nothing published"),
    ("publish", "one live"),
    ("publish", "rolled back"),
    ("rollback", "one live"),
)


def _situation(name: str, folder: Path) -> Path:
    repository = folder / "before" / "model_repository"
    repository.mkdir(parents=True)
    if name != "nothing published":
        publish_small(repository, geometry="pad")
        publish_small(repository, geometry="stretch")
    if name == "rolled back":
        publish_small(repository, geometry="stretch")
        rollback(repository)
    return repository


def _interrupted(mode: str, action: str, before: Path, out: Path) -> list[Path]:
    """What each interruption leaves, in the order of the steps; the undisturbed one last."""
    command = [sys.executable, "-m", "tests.helpers.interrupted", mode, action, before, out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    left = sorted((path for path in out.iterdir() if path.name != "complete"), key=lambda path: int(path.name))
    return [*left, out / "complete"]


def _texts(repository: Path) -> dict[str, str]:
    model = repository / contract.MODEL_NAME
    return {engine.file: (model / engine.file).read_text() for engine in ENGINES if (model / engine.file).exists()}


def _assert_valid(repository: Path) -> None:
    """Each version is whole, and each engine is pointed at one that is prepared for as its configuration says."""
    assert all(verify(repository, version).sound for version in versions(repository)), repository
    by_engine = served(repository)
    for engine, _, config in configs(repository):
        if by_engine:
            manifest = read_manifest(repository / contract.MODEL_NAME / str(by_engine[engine.name]))
            record = Preprocessing.from_json(config.parameters[contract.PREPROCESSING_PARAMETER].string_value)
            assert record == Preprocessing(**manifest["preprocessing"]), (repository, engine.name)


def _assert_served(repository: Path) -> None:
    """By a real Triton, with the preprocessing that the live version wants."""
    with TritonServer(repository, port=0, metrics_port=0) as server, XrayClient(server.url) as client:
        assert server.models[contract.MODEL_NAME] == ("2",)
        assert client.preprocessing.geometry == "stretch"


@pytest.mark.slow
@pytest.mark.parametrize(("action", "situation"), ACTIONS)
def test_whoever_is_killed_at_any_step_leaves_a_repository_that_can_be_served_and_published_into(
    tmp_path: Path, action: str, situation: str
) -> None:
    before = _situation(situation, tmp_path)
    live = set(served(before).values())
    left = _interrupted("kill", action, before, tmp_path / "left")
    assert len(left) > 10
    new = set(served(left[-1]).values())
    assert new != live, "undisturbed, it does something"
    torn = [path for path in left if len(versions(path)) > len(versions(before)) and set(served(path).values()) == live]
    if live and action == "publish":
        assert torn, "there is a moment between the rename and the configurations"
        _assert_served(torn[-1])
    for repository in left:
        _assert_valid(repository)
        assert set(served(repository).values()) <= live | new
        assert set(versions(before)) <= set(versions(repository))
        seen = max([0, *versions(repository)])
        assert publish_small(repository).version > seen
        assert {path.name for path in repository.rglob(".*")} == {".lock"}, "what the dead one left is cleared"
        assert set(served(repository).values()) == {versions(repository)[-1]}


@pytest.mark.slow
@pytest.mark.parametrize(("action", "situation"), [("publish", "one live"), ("rollback", "one live")])
def test_a_full_disk_at_any_step_is_a_typed_error_and_changes_nothing_that_is_served(
    tmp_path: Path, action: str, situation: str
) -> None:
    before = _situation(situation, tmp_path)
    *left, _ = _interrupted("full", action, before, tmp_path / "left")
    assert len(left) > 5
    for repository in left:
        assert versions(repository) == versions(before)
        assert served(repository) == served(before)
        if versions(before):
            assert _texts(repository) == _texts(before)
        assert publish_small(repository).version > max([0, *versions(before)])


def test_a_limit_on_the_size_of_files_is_a_typed_error(tmp_path: Path) -> None:
    """The operating system's own refusal, not a made one."""
    publish_small(tmp_path)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    code = (
        "import resource, sys; from pathlib import Path; from tests.helpers.small_graph import publish_small\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); publish_small(Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, capture_output=True, text=True)
    assert "BuildError" in done.stderr.splitlines()[-1]
    assert "File too large" in done.stderr.splitlines()[-1]
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before

"""From a checkpoint to a served version by `xray-build onnx` and `xray-build publish`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.models.checkpoint import REFERENCE, checkpoint_hashes
from tests.helpers.commands import xray_build
from xray_build.repository.card import card_of
from xray_build.repository.model_config import read_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the exported reference model."""
    folder = tmp_path_factory.mktemp("build")
    result = xray_build("onnx", "reference", "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def repository(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that this build was published to."""
    repository = tmp_path_factory.mktemp("published") / "model_repository"
    result = xray_build("publish", folder, "--repository", repository)
    assert result.exit_code == 0, result.output
    return repository


@pytest.fixture(scope="module")
def manifest(repository: Path) -> dict[str, Any]:
    return json.loads((repository / "medclip" / "1" / "manifest.json").read_text())


def test_the_manifest_says_what_the_checkpoint_said_and_which_it_was(manifest: dict[str, Any]) -> None:
    about = json.loads((REFERENCE / "config.json").read_text())["about"]
    assert {name: manifest[name] for name in about} == about
    assert manifest["checkpoint"] == checkpoint_hashes(REFERENCE)
    assert manifest["parity"] == manifest["build"]["steps"][0]["parity"]
    assert manifest["built_with"].keys() == {"torch", "onnx", "onnxruntime"}
    assert "about" not in manifest["build"], "said twice"


def test_every_served_configuration_has_the_model_card(repository: Path, manifest: dict[str, Any]) -> None:
    expected = card_of(manifest)
    assert expected is not None
    assert expected.checkpoint == checkpoint_hashes(REFERENCE)["model.safetensors"]
    configurations = sorted((repository / "medclip" / "configs").glob("*.pbtxt"))
    assert configurations
    for path in configurations:
        _, serving = read_config(path.stem, path.read_text())
        assert serving.card == expected


def test_the_list_of_versions_shows_the_checkpoint(repository: Path) -> None:
    listed = json.loads(xray_build("versions", "--repository", repository, "--format", "json").output)
    assert listed[0]["checkpoint"] == checkpoint_hashes(REFERENCE)["model.safetensors"]

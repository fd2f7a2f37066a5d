"""The commands on a model repository, as a person or a pipeline uses them; with a server: tests/serving."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.helpers.small_graph import publish_small, write_small_graph
from xray_build.artefacts import (
    BUILD_RECORD_FILE,
    COUNTING_CODE_FILE,
    INT8_FILE,
    KNOWN_ANSWERS_FILE,
    MANIFEST_FILE,
    MODEL_CODE_FILE,
    ONNX_FILE,
    RTX_FILE,
    THREADS_CODE_FILE,
)
from xray_build.repository.cli import commands
from xray_build.repository.publish import versions
from xray_client.files import sha256

_BY_NAME = {command.name: command for command in commands}


def _run(name: str, *arguments: object) -> Result:
    return CliRunner().invoke(_BY_NAME[name], [str(argument) for argument in arguments])


def _write_build(folder: Path, **values: object) -> Path:
    folder.mkdir()
    write_small_graph(folder / ONNX_FILE)
    artefact = {"file": ONNX_FILE, "sha256": sha256(folder / ONNX_FILE)}
    build = {"preprocessing": {"size": 224, "geometry": "pad"}, "steps": [{"name": "onnx", "artefacts": [artefact]}]}
    (folder / BUILD_RECORD_FILE).write_text(json.dumps({**build, **values}))
    return folder


def test_there_are_four_commands_and_each_explains_itself() -> None:
    assert set(_BY_NAME) == {"publish", "verify", "versions", "rollback"}
    for name in _BY_NAME:
        result = _run(name, "--help")
        assert result.exit_code == 0
        assert "--repository" in result.output


def test_what_a_build_filled_is_published_listed_verified_and_rolled_back(tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    build = _write_build(tmp_path / "build", about={"note": "night build"})
    (build / INT8_FILE).write_text("<net/>")
    (build / RTX_FILE).write_bytes(b"for a workstation")
    for version in (1, 2):
        result = _run("publish", build, "--repository", repository)
        assert result.exit_code == 0, result.output
        assert f"published version {version}" in result.output
        assert "Not a medical device" in result.output
    manifest = json.loads((repository / "medclip" / "2" / MANIFEST_FILE).read_text())
    assert manifest["note"] == "night build"
    assert set(manifest["files"]) == {
        ONNX_FILE,
        INT8_FILE,
        MODEL_CODE_FILE,
        COUNTING_CODE_FILE,
        THREADS_CODE_FILE,
        KNOWN_ANSWERS_FILE,
        BUILD_RECORD_FILE,
    }
    assert manifest["build"]["steps"][0]["name"] == "onnx"
    assert "version 2 is unchanged" in _run("verify", "--repository", repository).output
    assert "rolled back to version 1" in _run("rollback", "--repository", repository).output
    states = {row["version"]: row["state"] for row in _listed(repository)}
    assert states == {1: "live", 2: "withdrawn"}


def _listed(repository: Path) -> list[dict]:
    result = _run("versions", "--repository", repository, "--format", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_the_list_says_when_from_what_and_how_good(tmp_path: Path) -> None:
    auroc = {"value": 0.9971, "low": 0.9942, "high": 0.9991}
    about = {
        "checkpoint": {"model.safetensors": "ab" * 32},
        "metrics": {"intervals": "95 %", "val": {"after": {"auroc": auroc}}},
    }
    publish_small(tmp_path, about=about)
    publish_small(tmp_path)
    first, second = _listed(tmp_path)
    assert first["published"].endswith("Z")
    assert first["checkpoint"] == "ab" * 32
    assert first["auroc"] == auroc
    assert first["artefacts"] == [ONNX_FILE]
    assert (second["state"], second["auroc"], second["checkpoint"]) == ("live", None, None)
    table = _run("versions", "--repository", tmp_path).output
    assert "0.997 (0.994 to 0.999)" in table
    assert "abababababab" in table


def test_a_version_without_a_readable_manifest_is_listed_as_damaged(tmp_path: Path) -> None:
    publish_small(tmp_path)
    (tmp_path / "medclip" / "1" / MANIFEST_FILE).write_text("{")
    assert [row["state"] for row in _listed(tmp_path)] == ["live damaged"]


def test_an_empty_repository_has_no_versions(tmp_path: Path) -> None:
    assert "has no version" in _run("versions", "--repository", tmp_path).output


def test_a_version_of_another_repository_is_published_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    staging, production = tmp_path / "staging", tmp_path / "production"
    folder = publish_small(staging, about={"note": "approved"}, geometry="pad").folder
    assert _run("publish", folder, "--repository", production).exit_code == 0
    there = production / "medclip" / "1"
    assert json.loads((there / MANIFEST_FILE).read_text())["note"] == "approved"
    assert {path.name for path in there.iterdir()} == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda folder: folder / "nowhere", "has no model.onnx"),
        (
            lambda folder: _write_build(folder / "b", preprocessing=None),
            "does not say how its radiographs are prepared",
        ),
        (
            lambda folder: _write_build(
                folder / "b", steps=[{"name": "onnx", "artefacts": [{"file": ONNX_FILE, "sha256": "0"}]}]
            ),
            "model.onnx: is not the file that was built",
        ),
    ],
)
def test_what_cannot_be_published_is_said_in_one_line(tmp_path: Path, prepare, says: str) -> None:
    result = _run("publish", prepare(tmp_path), "--repository", tmp_path / "repository")
    assert result.exit_code == 1
    assert says in result.output
    assert len(result.output.splitlines()) == 1
    assert versions(tmp_path / "repository") == []


def test_an_unfit_version_fails_a_pipeline_and_the_reason_is_told(tmp_path: Path) -> None:
    folder = publish_small(tmp_path).folder
    (folder / ONNX_FILE).write_bytes(b"swapped")
    result = _run("verify", "--repository", tmp_path)
    assert result.exit_code == 1
    assert "WRONG" in result.output
    assert "version 1 is not fit to be served" in result.output


def test_a_server_that_is_not_there_is_said_and_nothing_is_published(tmp_path: Path) -> None:
    build = _write_build(tmp_path / "build")
    result = _run("publish", build, "--repository", tmp_path / "repository", "--url", "127.0.0.1:9")
    assert result.exit_code == 1
    assert "no server can be asked to load the version" in result.output
    assert versions(tmp_path / "repository") == []

"""Publication: complete or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from xray_build._errors import BuildError
from xray_build.publish import MANIFEST_FILE, Publication, staged_version, versions
from xray_client import Preprocessing

KILLED_AT = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from xray_build import publish
    from xray_client import Preprocessing

    point, repository = sys.argv[1], Path(sys.argv[2])

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    if point in ("write_configs", "_sync"):
        setattr(publish, point, die)
    with publish.staged_version(repository) as stage:
        (stage.folder / "model.onnx").write_bytes(b"graph")
        if point == "artefact":
            die()
        if point == "rename":
            Path.rename = die
        stage.publish(preprocessing=Preprocessing(geometry="stretch"), about={})
""")


def _publish(repository: Path, content: bytes = b"graph", geometry: str = "pad") -> Publication:
    with staged_version(repository) as stage:
        (stage.folder / "model.onnx").write_bytes(content)
        return stage.publish(preprocessing=Preprocessing(geometry=geometry), about={"note": "test"})


def test_versions_count_up_and_are_complete(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        publication = _publish(tmp_path)
        assert publication.version == expected
        assert {path.name for path in publication.folder.iterdir()} == {"model.onnx", "model.py", MANIFEST_FILE}
    assert versions(tmp_path) == [1, 2, 3]


def test_the_manifest_has_the_hash_of_every_artefact(tmp_path: Path) -> None:
    publication = _publish(tmp_path, b"some graph")
    manifest = json.loads((publication.folder / MANIFEST_FILE).read_text())
    assert set(manifest["files"]) == {"model.onnx", "model.py"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((publication.folder / name).read_bytes()).hexdigest() == digest
    assert manifest["preprocessing"] == {"size": 224, "geometry": "pad", "interpolation": "bicubic", "version": 1}
    assert manifest["note"] == "test"
    assert "Not a medical device" in manifest["notice"]


def test_a_failed_build_leaves_the_live_versions_and_nothing_else(tmp_path: Path) -> None:
    _publish(tmp_path)
    before = sorted(str(path) for path in tmp_path.rglob("*"))

    def fail() -> None:
        with staged_version(tmp_path) as stage:
            (stage.folder / "model.onnx").write_bytes(b"half")
            raise RuntimeError("parity")

    with pytest.raises(RuntimeError, match="parity"):
        fail()
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_two_publishers_do_not_clash(tmp_path: Path) -> None:
    with staged_version(tmp_path), pytest.raises(BuildError, match="another build is publishing"):
        _publish(tmp_path)
    assert _publish(tmp_path).version == 1


@pytest.mark.parametrize("point", ["artefact", "_sync", "write_configs", "rename"])
def test_a_publisher_killed_at_any_point_leaves_the_repository_valid(tmp_path: Path, point: str) -> None:
    _publish(tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED_AT, point, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert versions(tmp_path) == [1]
    assert _publish(tmp_path).version == 2
    assert not list((tmp_path / "medclip").glob(".staging-*")), "what the dead one left is cleared"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_repository_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BuildError, match="cannot be written") as caught:
        _publish(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_repository_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="cannot be written") as caught:
        _publish(tmp_path / "file")
    assert str(tmp_path) in str(caught.value)

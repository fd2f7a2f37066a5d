"""Checkpoints: strict, and clear about what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from finetune.errors import CheckpointError
from finetune.export import main as export
from finetune.models.checkpoint import CONFIG_FILE, REFERENCE, WEIGHTS_FILE, load_checkpoint, save_checkpoint


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "checkpoint", tmp_path / "checkpoint"))


def test_a_checkpoint_comes_back_as_it_was_saved(checkpoint: Path, tmp_path: Path) -> None:
    model, about = load_checkpoint(checkpoint)
    save_checkpoint(model, tmp_path / "again", about)
    again, about_again = load_checkpoint(tmp_path / "again")
    image = torch.from_numpy(np.load(checkpoint / "parity_images.npy")[:2])
    with torch.inference_mode():
        for one, other in zip(model(image), again(image), strict=True):
            assert torch.equal(one, other)
    assert about == about_again
    assert about["decision"]["operating_point"] > 0


def _break_weights(checkpoint: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(checkpoint / WEIGHTS_FILE)
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, checkpoint / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("classifier.projection.weight", None, "missing classifier.projection.weight"),
        ("classifier.extra", torch.zeros(1), "unexpected classifier.extra"),
        ("classifier.class_bias", torch.zeros(3), r"classifier.class_bias is \(3,\), expected \(2,\)"),
        ("classifier.class_bias", torch.tensor([0.0, torch.nan]), "classifier.class_bias holds NaN"),
    ],
)
def test_weights_that_do_not_match_their_config_are_refused_by_name(
    checkpoint: Path, name: str, tensor: torch.Tensor | None, words: str
) -> None:
    _break_weights(checkpoint, name, tensor)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(checkpoint)


def _edit_config(checkpoint: Path, **changes: object) -> None:
    config = json.loads((checkpoint / CONFIG_FILE).read_text())
    config["model"] |= changes.pop("model", {})
    (checkpoint / CONFIG_FILE).write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint_version": 99}, "checkpoint version 99"),
        ({"model": {"architecture": "medclip-huge"}}, "does not describe a known model"),
        ({"model": {"labels": ["Normal", "Tuberculosis"]}}, "its labels are"),
        ({"model": {"preprocessing": {"size": 224, "geometry": "fish-eye"}}}, "fish-eye"),
        ({"model": {"embedding_dim": 256}}, "weights do not match"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(checkpoint: Path, changes: dict, words: str) -> None:
    _edit_config(checkpoint, **changes)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(checkpoint)


def test_damaged_files_and_empty_folders_are_told_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(export, [str(tmp_path / "nothing"), "--repository", str(tmp_path / "r")])
    assert result.exit_code == 1
    assert "no checkpoint here" in result.output
    assert "python -m finetune.run" in result.output
    (checkpoint / WEIGHTS_FILE).write_bytes(b"\x10")
    result = CliRunner().invoke(export, [str(checkpoint), "--repository", str(tmp_path / "r")])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    (checkpoint / CONFIG_FILE).write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(checkpoint)
    assert not (tmp_path / "r").exists(), "nothing half-written is left behind"


def test_the_reference_loads_and_names_its_decision_and_splits() -> None:
    model, about = load_checkpoint(REFERENCE)
    assert model.band.tolist() == pytest.approx(about["decision"]["uncertain_band"], abs=1e-6)
    assert about["metrics"]["val"]["after"]["auroc"]["value"] > 0.9


def test_a_checkpoint_of_an_earlier_release_is_read_under_todays_names(checkpoint: Path) -> None:
    config = json.loads((checkpoint / CONFIG_FILE).read_text())
    about = config["about"]
    old = {("trust" if name == "decision" else name): value for name, value in about.items()}
    old["metrics"] = {("validation" if name == "val" else name): value for name, value in about["metrics"].items()}
    (checkpoint / CONFIG_FILE).write_text(json.dumps({**config, "about": old}))
    assert load_checkpoint(checkpoint)[1] == about

"""A release is a smaller checkpoint with the metrics of the run and the same predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from finetune import release as module
from finetune.errors import CheckpointError
from finetune.evaluate import main as evaluate
from finetune.export import main as export
from finetune.models.checkpoint import WEIGHTS_FILE, checkpoint_folder, load_checkpoint
from finetune.release import main
from xray_client import OutputRefused


@pytest.fixture(scope="module")
def evaluation(trained: Path, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation")
    options = ["--checkpoint", trained, "--data", phantoms, "--cache", out / "cache", "--check-images", 4, "--out", out]
    result = CliRunner().invoke(evaluate, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def released(trained: Path, evaluation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("released") / "reference"
    result = CliRunner().invoke(main, [str(trained), "--evaluation", str(evaluation), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def test_half_the_size_and_the_same_answers(released: Path, trained: Path) -> None:
    whole = (trained / "checkpoint" / WEIGHTS_FILE).stat().st_size
    assert (released / WEIGHTS_FILE).stat().st_size < 0.55 * whole
    stored = {tensor.dtype for tensor in load_file(released / WEIGHTS_FILE).values() if tensor.is_floating_point()}
    assert stored == {torch.float16, torch.float32}
    model, about = load_checkpoint(released)
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    assert about["rounding"]["probability"] < 0.01


def test_it_says_where_it_comes_from_and_holds_no_radiographs(released: Path, trained: Path) -> None:
    assert {path.name for path in released.iterdir()} == {WEIGHTS_FILE, "config.json", "MODEL_CARD.md"}
    text = (released / "config.json").read_text()
    about = json.loads(text)["about"]
    assert about["command"].startswith("python -m finetune.run --data DIR ")
    assert " --epochs 1 --head-epochs 10 " in about["command"]
    assert "--seed 0" in about["command"]
    assert str(trained.parent) not in text, "a path of the machine that trained it"
    assert about["evaluation"]["stages"]["after"]["auroc"]["low"] <= 1


def test_it_counts_the_files_that_were_left_out_and_names_none(trained: Path, evaluation: Path, tmp_path: Path) -> None:
    """The name of a file may be that of a patient."""
    folder = Path(shutil.copytree(evaluation, tmp_path / "evaluation"))
    figures = json.loads((folder / "evaluation.json").read_text())
    figures["data"]["left_out"] = [{"file": "NORMAL/doe^jane.doc", "reason": "not an image", "files": 1}]
    figures["data"]["unreadable"] = [["NORMAL/doe^jane.png", "truncated"]]
    (folder / "evaluation.json").write_text(json.dumps(figures))
    about = module.release(trained, folder, tmp_path / "released")
    assert (about["evaluation"]["data"]["left_out"], about["evaluation"]["data"]["unreadable"]) == (1, 1)
    assert "doe" not in (tmp_path / "released" / "config.json").read_text()


def test_an_evaluation_without_its_checks_is_no_evidence(trained: Path, evaluation: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(evaluation, tmp_path / "evaluation"))
    figures = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps({k: v for k, v in figures.items() if k != "masking"}))
    with pytest.raises(CheckpointError, match="the evaluation lacks masking"):
        module.release(trained, folder, tmp_path / "released")


def test_it_names_the_runs_before_it_as_well(released: Path, trained: Path, evaluation: Path, tmp_path: Path) -> None:
    """The start may be a released checkpoint or an unreleased run."""
    own = json.loads((released / "config.json").read_text())["about"]["command"]
    for start in (released, trained):
        later = tmp_path / start.name
        shutil.copytree(trained, later)
        settings = json.loads((later / "settings.json").read_text())
        (later / "settings.json").write_text(json.dumps({**settings, "start": [str(start)], "seed": 7}))
        commands = module.release(later, evaluation, tmp_path / f"{start.name}-released")["command"].splitlines()
        assert len(commands) == 2
        assert commands[0] == own
        assert f"--start {start.name}" in commands[1]
        assert "--seed 7" in commands[1]


def test_rounding_that_changes_the_answers_is_refused(
    trained: Path, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PROBABILITY_CHANGE", -1.0)
    kept = tmp_path / "reference"
    kept.mkdir()
    (kept / "config.json").touch()
    with pytest.raises(CheckpointError, match="changes the predictions"):
        module.release(trained, evaluation, kept)
    assert (kept / "config.json").exists()
    (kept / "thesis.doc").touch()
    with pytest.raises(OutputRefused, match="1 files that are no checkpoint"):
        module.release(trained, evaluation, kept)


def test_a_folder_without_evaluation_is_told_in_one_line(trained: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(trained), "--evaluation", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "finetune.evaluate" in result.output
    assert not (tmp_path / "out").exists()


def test_what_holds_no_radiographs_is_compared_on_phantoms(released: Path, tmp_path: Path) -> None:
    options = [str(released), "--repository", str(tmp_path / "repository")]
    first = CliRunner().invoke(export, options)
    assert first.exit_code == 0, first.output
    assert "on 16 phantoms" in first.output
    again = CliRunner().invoke(export, [*options, "--unless-published"])
    assert again.exit_code == 0, again.output
    assert [path.name for path in (tmp_path / "repository" / "medclip").glob("[0-9]*")] == ["1"]


def test_reference_is_a_name_unless_a_folder_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, released: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (checkpoint_folder(Path("reference")) / WEIGHTS_FILE).is_file()
    shutil.copytree(released, tmp_path / "reference")
    assert checkpoint_folder(Path("reference")) == Path("reference")

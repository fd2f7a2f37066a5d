"""One declaration per option: command line, settings files and Python callers share defaults, ranges and help."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from finetune.command_line import SettingOption
from finetune.errors import SettingsError
from finetune.models.classifier import TOWERS
from finetune.options import kinds, option_of
from finetune.run import main
from finetune.settings import (
    ARCHITECTURES,
    AnswerSettings,
    DataSettings,
    ModelSettings,
    OutputSettings,
    RunSettings,
    TrainSettings,
    groups,
)
from finetune.settings_file import read_settings


def _options() -> dict[str, SettingOption]:
    return {option.name: option for option in main.params if isinstance(option, SettingOption) and option.name}


def test_every_setting_is_an_option_with_its_default_and_help() -> None:
    options = _options()
    for settings in groups().values():
        for field in fields(settings):  # type: ignore[arg-type]
            declared = option_of(settings, field.name)
            assert options[field.name].help == declared.help
            if not options[field.name].required:
                assert options[field.name].default == field.default
    assert set(options) == {name for settings in groups().values() for name in kinds(settings)}


def test_the_architectures_to_choose_from_are_those_that_can_be_built() -> None:
    assert tuple(TOWERS) == ARCHITECTURES


def test_settings_survive_the_way_through_their_file(tmp_path: Path) -> None:
    settings = RunSettings(
        DataSettings(Path("radiographs"), val_fraction=0.2, seed=7),
        ModelSettings("medclip-vit", weights="random", start=(Path("a"), Path("b"))),
        TrainSettings(epochs=3, wise_ft=True, seed=7),
        AnswerSettings(balanced_point=True),
        OutputSettings(publish=False),
    )
    (tmp_path / "settings.json").write_text(json.dumps(settings.as_flat()))
    values = read_settings(tmp_path)
    assert values == settings.as_flat()
    context = click.Context(main, default_map=values)
    main.parse_args(context, [])
    assert RunSettings.from_flat(context.params) == settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": -1}, "epochs must be at least 0, not -1"),
        ({"epochs": True}, "epochs must be a whole number, not True"),
        ({"epochs": 2.5}, "epochs must be a whole number, not 2.5"),
        ({"average": 1.0}, "average must be below 1, not 1.0"),
        ({"learning_rate": 0}, "learning_rate must be above 0, not 0"),
        ({"augmentation": float("nan")}, "augmentation must be at least 0, not nan"),
        ({"objective": "guess"}, "objective must be one of supervised, contrastive, both, not 'guess'"),
        ({"wise_ft": "yes"}, "wise_ft must be true or false, not 'yes'"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        TrainSettings(**settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3", "unknown setting 'epoch' (did you mean 'epochs'?)"),
        ("tower-learning-rte: 1", "did you mean 'tower_learning_rate'?"),
        ("xyzzy: 3", "unknown setting 'xyzzy' (see --help-all"),
        ("epochs: -1", "epochs must be at least 0, not -1"),
        ("epochs: true", "epochs must be a whole number"),
        ("model: medclip", "architecture must be one of medclip-lite"),
        ("- epochs", "holds no settings by name"),
        ("epochs: [", "cannot be read as settings"),
    ],
)
def test_a_settings_file_that_is_not_understood_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text + "\n")
    with pytest.raises(SettingsError) as raised:
        read_settings(file)
    assert said in str(raised.value)
    assert str(file) in str(raised.value)


def test_a_yaml_file_takes_the_names_of_the_options(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("model: medclip-vit\nweights: random\ntower-learning-rate: 1e-4\nstart: reference\nwise_ft: true\n")
    assert read_settings(file) == {
        "architecture": "medclip-vit",
        "weights": "random",
        "tower_learning_rate": 1e-4,
        "start": ["reference"],
        "wise_ft": True,
    }


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("data: radiographs\nepochs: 3\npatience: 9\n")
    context = click.Context(main)
    main.parse_args(context, ["--config", str(file), "--epochs", "5"])
    training = RunSettings.from_flat(context.params).training
    assert (training.epochs, training.patience) == (5, 9)


def test_help_shows_the_common_options_in_groups_and_help_all_the_others_too() -> None:
    short, full = (CliRunner().invoke(main, [option]).output for option in ("--help", "--help-all"))
    for heading in ("Data:", "Model:", "Training:", "Answer:", "Output:"):
        assert f"\n{heading}\n" in short
        assert f"\n{heading}\n" in full
    flags = {option.opts[0]: option.common for option in _options().values()}
    assert {flag for flag in flags if f"\n  {flag} " in short} == {flag for flag, common in flags.items() if common}
    assert all(f"\n  {flag} " in full for flag in flags)
    assert sum(flags.values()) == 13

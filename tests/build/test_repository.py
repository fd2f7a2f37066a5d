"""Triton model configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from xray_build._errors import BuildError
from xray_build.repository import ENGINES, ServingConfig, config_text, model_config, parse_config, write_configs
from xray_client import LABELS, Preprocessing, contract

COMMITTED = Path(__file__).resolve().parents[2] / "model_repository"


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_configuration_round_trips_through_tritons_own_schema(engine) -> None:
    serving = ServingConfig(Preprocessing(geometry="stretch"), max_batch_size=8, queue_delay_us=500)
    parsed = parse_config(config_text(engine, serving))
    assert parsed == model_config(engine, serving)
    assert parsed.dynamic_batching.max_queue_delay_microseconds == 500
    record = parsed.parameters[contract.PREPROCESSING_PARAMETER].string_value
    assert Preprocessing.from_json(record) == serving.preprocessing


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_configuration_is_the_contract(engine) -> None:
    config = model_config(engine, ServingConfig())
    assert [(t.name, list(t.dims)) for t in config.input] == [(contract.IMAGE, [1, 224, 224])]
    assert [t.name for t in config.output] == list(contract.OUTPUTS)


def test_the_committed_configurations_are_what_the_generator_writes() -> None:
    model = COMMITTED / contract.MODEL_NAME
    expected = {f"configs/{engine.name}.pbtxt": config_text(engine, ServingConfig()) for engine in ENGINES}
    expected["labels.txt"] = "\n".join(LABELS) + "\n"
    assert {name: (model / name).read_text() for name in expected} == expected


def test_configurations_that_are_right_already_are_not_touched(tmp_path: Path) -> None:
    assert len(write_configs(tmp_path, ServingConfig())) == len(ENGINES) + 1
    assert write_configs(tmp_path, ServingConfig()) == []
    changed = write_configs(tmp_path, ServingConfig(Preprocessing(geometry="stretch")))
    assert {path.suffix for path in changed} == {".pbtxt"}


def test_a_misspelt_field_and_an_impossible_value_are_refused() -> None:
    with pytest.raises(BuildError, match="max_batch_sise"):
        parse_config("max_batch_sise: 4")
    with pytest.raises(BuildError, match="at least 1"):
        ServingConfig(max_batch_size=0)

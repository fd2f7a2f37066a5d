"""Triton model configurations."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.helpers.small_graph import publish_small
from xray_build.artefacts import LABELS_FILE, MODEL_CODE_FILE
from xray_build.errors import BuildError
from xray_build.repository.configurations import configs, served
from xray_build.repository.model_config import (
    ENGINES,
    ROUTINE,
    STAT,
    EngineConfig,
    QueuePolicy,
    ServingConfig,
    config_text,
    model_config,
    read_config,
)
from xray_build.repository.pbtxt import parse_config
from xray_build.repository.publish import rollback
from xray_build.repository.write_configs import main as write_all
from xray_build.repository.write_configs import reference_serving, write_configs
from xray_client import LABELS, Estimate, ModelCard, Preprocessing, contract
from xray_client.files import sha256

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "finetune" / "reference"
COMMITTED = ROOT / "model_repository"


def _committed() -> dict[str, str]:
    model = COMMITTED / contract.MODEL_NAME
    return {name: (model / name).read_text() for name in [*(engine.file for engine in ENGINES), LABELS_FILE]}


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_configuration_round_trips_through_tritons_own_schema(engine: EngineConfig) -> None:
    tuned = dataclasses.replace(engine, instances=2, queue_delay_us=700, preferred_batches=(4,))
    serving = ServingConfig(
        Preprocessing(geometry="stretch", size=256),
        max_batch_size=8,
        stat=QueuePolicy(timeout_s=2.5),
        routine=QueuePolicy(longest=7, may_shorten=False),
        version=3,
        card=ModelCard(operating_point=0.25, figures={"auroc": Estimate(0.9, 0.8, 0.95)}, notice='"µ"'),
    )
    assert parse_config(config_text(tuned, serving)) == model_config(tuned, serving)
    assert read_config(engine.name, config_text(tuned, serving)) == (tuned, serving)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_configuration_is_the_contract(engine: EngineConfig) -> None:
    config = model_config(engine, ServingConfig())
    assert [(t.name, list(t.dims)) for t in config.input] == [(contract.IMAGE, [1, 224, 224])]
    assert [t.name for t in config.output] == list(contract.OUTPUTS)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_urgent_requests_have_a_queue_of_their_own_and_others_are_the_default(engine: EngineConfig) -> None:
    batching = model_config(engine, ServingConfig(stat=QueuePolicy(timeout_s=1))).dynamic_batching
    assert (batching.priority_levels, batching.default_priority_level) == (ROUTINE, ROUTINE)
    assert batching.priority_queue_policy[STAT].default_timeout_microseconds == 1_000_000
    assert batching.default_queue_policy.max_queue_size > 0, "routine requests may not pile up without end"


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_an_engine_is_warmed_up_at_both_ends_and_caches_nothing(engine: EngineConfig) -> None:
    config = model_config(engine, ServingConfig(max_batch_size=64))
    assert [sample.batch_size for sample in config.model_warmup] == [1, 64]
    assert not config.response_cache.enable


def test_the_engine_with_a_profile_has_its_sizes_and_graphs_and_the_embedded_one_small_batches() -> None:
    by_name = {engine.name: model_config(engine, ServingConfig()) for engine in ENGINES}
    preferred = {name: list(config.dynamic_batching.preferred_batch_size) for name, config in by_name.items()}
    graphs = [name for name, config in by_name.items() if config.optimization.cuda.graphs]
    assert preferred == {"tensorrt": [8, 32], "onnx": [], "openvino": [], "embedded": [2]}
    assert graphs == ["tensorrt"]


def test_the_committed_configurations_are_what_the_generator_writes_for_the_reference_model() -> None:
    serving = reference_serving(REFERENCE)
    expected = {engine.file: config_text(engine, serving) for engine in ENGINES}
    assert _committed() == {**expected, LABELS_FILE: "\n".join(LABELS) + "\n"}, "run python -m xray_build.repository"
    assert max(len(text) for text in expected.values()) < 5_000


def test_publishing_the_reference_changes_nothing_that_is_committed_and_another_model_what_differs(
    tmp_path: Path,
) -> None:
    model = tmp_path / contract.MODEL_NAME
    for name in _committed():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(COMMITTED / contract.MODEL_NAME / name, model / name)
    assert publish_small(tmp_path, version=1, about=_about_the_reference()).reconfigured == ()
    assert {name: (model / name).read_text() for name in _committed()} == _committed()
    otherwise = publish_small(tmp_path, geometry="pad", version=1, about=_about_the_reference())
    assert {path.relative_to(model).as_posix() for path in otherwise.reconfigured} == {
        engine.file for engine in ENGINES
    }
    assert "changed for it: config.pbtxt, onnx.pbtxt, openvino.pbtxt, embedded.pbtxt" in str(otherwise)


def test_each_version_is_served_with_its_own_card_also_after_a_rollback(tmp_path: Path) -> None:
    points = []
    for published in (
        {"decision": {"operating_point": 0.2}},
        {"decision": {"operating_point": 0.3}},
        {"note": "no card"},
    ):
        publish_small(tmp_path, about=published)
        points.append(_served_points(tmp_path))
    rollback(tmp_path, to=1)
    points.append(_served_points(tmp_path))
    assert points == [{0.2}, {0.3}, {None}, {0.2}]


def test_the_generator_keeps_what_the_served_version_says(tmp_path: Path) -> None:
    for _ in range(2):
        publish_small(tmp_path, geometry="pad", about={"decision": {"operating_point": 0.3}})
    rollback(tmp_path)
    before = {path: path.read_text() for path in tmp_path.rglob("*.pbtxt")}
    options = ["--repository", str(tmp_path), "--reference", str(REFERENCE)]
    done = CliRunner().invoke(write_all, options)
    assert (done.exit_code, done.output) == (0, "")
    assert {path: path.read_text() for path in tmp_path.rglob("*.pbtxt")} == before
    (tmp_path / contract.MODEL_NAME / "config.pbtxt").unlink()
    assert CliRunner().invoke(write_all, options).output.count("wrote") == 1
    assert _served_points(tmp_path) == {0.3}


def test_a_reference_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(write_all, ["--repository", str(tmp_path), "--reference", str(tmp_path / "none")])
    assert done.exit_code == 1
    assert "name it with --reference" in done.output


def _about_the_reference() -> dict[str, Any]:
    about = json.loads((REFERENCE / "config.json").read_text())["about"]
    return {**about, "checkpoint": {"model.safetensors": sha256(REFERENCE / "model.safetensors")}}


def _served_points(repository: Path) -> set[float | None]:
    """The operating points that the configurations name."""
    serving = [read_config(engine.name, path.read_text())[1] for engine, path, _ in configs(repository)]
    assert len(serving) == len(ENGINES)
    return {each.card.operating_point if each.card else None for each in serving}


def test_what_an_operator_tuned_outlives_a_publication(tmp_path: Path) -> None:
    publish_small(tmp_path, geometry="stretch")
    path = tmp_path / contract.MODEL_NAME / "configs" / "onnx.pbtxt"
    tuned = "# four sockets\n" + path.read_text().replace("count: 1", "count: 4")
    path.write_text(tuned)
    publish_small(tmp_path, geometry="stretch")
    assert path.read_text() == tuned
    publish_small(tmp_path, geometry="pad")
    assert parse_config(path.read_text()).instance_group[0].count == 4
    assert "# four sockets" in path.read_text()
    for point in (0.2, 0.3):
        publish_small(tmp_path, geometry="pad", about={"decision": {"operating_point": point}})
        assert "# four sockets" in path.read_text()
        assert f'"operating_point\\": {point}' in path.read_text()
    publish_small(tmp_path, geometry="pad")
    assert "operating_point" not in path.read_text()


def test_an_operators_own_configuration_follows_the_versions_like_ours(tmp_path: Path) -> None:
    publish_small(tmp_path, geometry="stretch")
    configs = tmp_path / contract.MODEL_NAME / "configs"
    (configs / "mine.pbtxt").write_text((configs / "embedded.pbtxt").read_text().replace("count: 2", "count: 3"))
    publish_small(tmp_path, geometry="pad")
    rollback(tmp_path)
    mine = parse_config((configs / "mine.pbtxt").read_text())
    assert mine.instance_group[0].count == 3
    assert list(mine.version_policy.specific.versions) == [1]
    assert "stretch" in mine.parameters[contract.PREPROCESSING_PARAMETER].string_value
    assert served(tmp_path)["mine"] == 1


def test_configurations_that_are_right_already_are_not_touched(tmp_path: Path) -> None:
    assert len(write_configs(tmp_path, ServingConfig())) == len(ENGINES) + 1
    assert write_configs(tmp_path, ServingConfig()) == []
    changed = write_configs(tmp_path, ServingConfig(Preprocessing(geometry="stretch")))
    assert {path.suffix for path in changed} == {".pbtxt"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: parse_config("max_batch_sise: 4"), "max_batch_sise"),
        (lambda: ServingConfig(max_batch_size=0), "at least 1"),
        (lambda: ServingConfig(version=0), "from 1"),
        (lambda: QueuePolicy(timeout_s=-1), "at least 0"),
        (lambda: EngineConfig("x", "python", "../model.py"), "not the name of a file"),
        (lambda: EngineConfig("x", "python", MODEL_CODE_FILE, kind="TPU"), "TPU"),
        (lambda: EngineConfig("x", "python", MODEL_CODE_FILE, cuda_graphs=True), "on a GPU"),
        (lambda: EngineConfig("x", "python", MODEL_CODE_FILE, parameters={"engine": "abacus"}), "abacus"),
        (lambda: EngineConfig("x", "python", MODEL_CODE_FILE, parameters={"threads": "-1"}), "threads"),
        (lambda: model_config(ENGINES[0], ServingConfig(max_batch_size=4)), "over max_batch_size"),
        (lambda: read_config("x", 'backend: "python"'), "publish a version"),
    ],
)
def test_a_misspelt_field_and_an_impossible_value_are_refused(make, says: str) -> None:
    with pytest.raises(BuildError, match=says):
        make()

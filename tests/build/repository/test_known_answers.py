"""KnownAnswers answers: the answers that count as known, and those that do not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.small_graph import write_small_graph
from xray_build.artefacts import INT8_FILE, KNOWN_ANSWERS_FILE, ONNX_FILE, PLAN_FILE
from xray_build.errors import BuildError
from xray_build.repository.known_answers import TOLERANCES, KnownAnswers, answer_known_radiographs, drawn_chest
from xray_client import Prediction, Preprocessing, Timing, contract


@pytest.fixture
def known(tmp_path: Path) -> KnownAnswers:
    write_small_graph(tmp_path / ONNX_FILE)
    return answer_known_radiographs(tmp_path, None, Preprocessing())


def _answer(known: KnownAnswers, **changed: object) -> Prediction:
    """The right answer to the first image."""
    values = {name: rows[0] for name, rows in known.answers.items()}
    decision = int(values[contract.DECISION][0])
    right = Prediction(
        file=None,
        finding=contract.FINDINGS[decision],
        probability=float(values[contract.PROBABILITY][contract.PNEUMONIA]),
        decision=decision,
        novelty=float(values[contract.NOVELTY][0]),
        heatmap=values[contract.HEATMAP],
        model="medclip",
        model_version="1",
        milliseconds=1.0,
        timing=Timing(prepare_ms=0.5, server_ms=0.5),
        preprocessing=Preprocessing(),
    )
    return dataclasses.replace(right, **changed)


@pytest.mark.parametrize("artefact", TOLERANCES)
def test_the_known_answer_is_right_for_every_engine(known: KnownAnswers, artefact: str) -> None:
    assert known.difference(0, _answer(known), artefact) == ""


@pytest.mark.parametrize("artefact", TOLERANCES)
@pytest.mark.parametrize("output", ["probability", "novelty", "heatmap"])
def test_an_answer_outside_the_engines_tolerance_is_named_and_one_inside_is_not(
    known: KnownAnswers, artefact: str, output: str
) -> None:
    right, tolerance = _answer(known), TOLERANCES[artefact]
    allowed = tolerance.probability if output == "probability" else tolerance.relative
    for share, wrong in ((0.9, False), (1.1, True)):
        changed = {output: getattr(right, output) + share * allowed}
        assert known.difference(0, _answer(known, **changed), artefact).startswith(output) == wrong


def test_another_decision_is_wrong_but_for_engines_that_round_too_coarsely_to_tell(known: KnownAnswers) -> None:
    decision = 1 - _answer(known).decision
    other = _answer(known, decision=decision, finding=contract.FINDINGS[decision])
    named = {artefact for artefact in TOLERANCES if known.difference(0, other, artefact).startswith("finding")}
    assert named == {ONNX_FILE, PLAN_FILE}


def test_an_answer_that_is_no_number_is_never_right(known: KnownAnswers) -> None:
    for output in ("probability", "novelty"):
        assert known.difference(0, _answer(known, **{output: float("nan")}), INT8_FILE).startswith(output)


def test_what_is_saved_is_what_is_loaded_and_nothing_is_unpickled(known: KnownAnswers, tmp_path: Path) -> None:
    loaded = KnownAnswers.load(tmp_path)
    np.testing.assert_array_equal(loaded.images, known.images)
    assert loaded.answers.keys() == set(contract.OUTPUTS)
    np.savez(tmp_path / KNOWN_ANSWERS_FILE, image=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(BuildError, match="allow_pickle"):
        KnownAnswers.load(tmp_path)
    np.savez(tmp_path / KNOWN_ANSWERS_FILE, image=known.images)
    with pytest.raises(BuildError, match="lacks decision, heatmap, novelty, probability"):
        KnownAnswers.load(tmp_path)


def test_the_drawn_chest_is_the_same_everywhere_and_of_any_size() -> None:
    assert drawn_chest(224).shape == (1, 224, 224)
    assert drawn_chest(64).dtype == np.uint8
    half = drawn_chest(448).reshape(1, 224, 2, 224, 2).mean(axis=(2, 4))
    assert np.abs(half - drawn_chest(224)).max() < 6, "the same picture, finer"

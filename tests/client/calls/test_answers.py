"""An answer that breaks the contract is never believed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.radiographs import grey
from xray_client import ProtocolMismatch, XrayClient
from xray_client.testing import FakeServer


def drop(name: str):
    return lambda outputs: outputs.pop(name)


def put(name: str, values: object, dtype: type = np.float32):
    return lambda outputs: outputs.update({name: np.array(values, dtype)})


SPOILED = [
    (put("probability", [[np.nan, np.nan]]), "'probability' holds values that are not numbers"),
    (put("heatmap", np.full((1, 7, 7), np.inf)), "'heatmap' holds values that are not numbers"),
    (put("novelty", [[np.nan]]), "'novelty' holds values that are not numbers"),
    (put("probability", [[0.5, 0.49]]), "with the sum 1"),
    (put("probability", [[-0.1, 1.1]]), "from 0 to 1"),
    (put("probability", [[0.2, 0.3, 0.5]]), r"'probability' has the shape \[1, 3\]"),
    (put("probability", [0.5, 0.5]), r"'probability' has the shape \[2\]"),
    (put("probability", [[0.5, 0.5]] * 2), r"'probability' has the shape \[2, 2\]"),
    (put("heatmap", np.zeros((1, 0, 7))), r"'heatmap' has the shape \[1, 0, 7\]"),
    (put("probability", [[0.5, 0.5]], np.float64), "'probability' is of type float64, not float32"),
    (put("decision", [[1]], np.int64), "'decision' is of type int64, not int32"),
    (put("decision", [[3]], np.int32), "the decision 3 is none of 0 to 2"),
    (put("decision", [[-1]], np.int32), "the decision -1"),
    (drop("probability"), "no output 'probability'"),
    (drop("decision"), "no output 'decision'"),
    (drop("heatmap"), "no output 'heatmap'"),
    (drop("novelty"), "no output 'novelty'"),
]


class TestAnAnswerThatBreaksTheContract:
    @pytest.mark.parametrize(("spoil", "words"), SPOILED, ids=[words for _, words in SPOILED])
    def test_is_a_mismatch_that_says_how(self, fake: FakeServer, client: XrayClient, spoil, words: str) -> None:
        fake.alter = spoil
        with pytest.raises(ProtocolMismatch, match=words) as caught:
            client.classify(grey(9))
        assert caught.value.source == f"medclip at {fake.url}"

    def test_may_be_to_another_request(self, fake: FakeServer, client: XrayClient) -> None:
        fake.answer_id = lambda request_id: request_id + "0"
        with pytest.raises(ProtocolMismatch, match="the answer is to request"):
            client.classify(grey(9))

    def test_may_hold_fewer_bytes_than_its_shape_needs(self, fake: FakeServer, client: XrayClient) -> None:
        class Short(np.ndarray):
            def tobytes(self, order: str = "C") -> bytes:
                return super().tobytes()[:-4]

        fake.alter = lambda outputs: outputs.update(heatmap=outputs["heatmap"].view(Short))
        with pytest.raises(ProtocolMismatch, match="cannot be decoded"):
            client.classify(grey(9))

    def test_does_not_count_a_rounding_error(self, fake: FakeServer, client: XrayClient) -> None:
        fake.alter = put("probability", [[0.4997, 0.5]])
        assert client.classify(grey(9)).probability == 0.5

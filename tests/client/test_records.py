"""The client prepares each image as the version that answers wants it (see fake_triton.py)."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from xray_client import (
    Preprocessing,
    PreprocessingMismatch,
    ProtocolMismatch,
    XrayClient,
)

from .fake_triton import FakeTriton

STRETCH = Preprocessing(geometry="stretch").to_json()
NEWER = Preprocessing().to_json().replace('"version": 1', '"version": 2')


def grey(level: int, shape: tuple[int, int] = (224, 224)) -> np.ndarray:
    return np.full(shape, level, np.uint8)


def levels(request) -> np.ndarray:
    """The image that a request carried."""
    return np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(request.inputs[0].shape)


class TestThePreprocessing:
    def test_is_asked_for_once_and_once_more_at_the_first_answer(self, triton: FakeTriton, client: XrayClient) -> None:
        assert client.preprocessing == Preprocessing()
        for _ in range(3):
            client.classify(grey(1))
        assert client.preprocessing == Preprocessing()
        assert triton.config_calls == 2

    @pytest.mark.parametrize(
        ("record", "words"), [(None, "does not say how"), (NEWER, "preprocessing version 2"), ("{", "not understood")]
    )
    def test_that_cannot_be_followed_is_a_mismatch(self, triton: FakeTriton, record: str | None, words: str) -> None:
        triton.records["1"] = record
        with XrayClient(triton.url) as client:
            for call in (lambda: client.classify(grey(1)), lambda: client.preprocessing, client.check, client.info):
                with pytest.raises(PreprocessingMismatch, match=words) as caught:
                    call()
                assert caught.value.source == f"medclip at {triton.url}"
        assert not triton.requests

    def test_of_a_new_version_prepares_the_image_again(self, triton: FakeTriton, client: XrayClient) -> None:
        client.classify(grey(255, (100, 200)))
        triton.records["2"], triton.version = STRETCH, "2"
        answer = client.classify(grey(255, (100, 200)))
        assert [int(levels(request).min()) for request in triton.requests] == [0, 0, 255]  # padded, padded, stretched
        assert (answer.model_version, answer.probability) == ("2", 1.0)
        assert answer.preprocessing.geometry == client.preprocessing.geometry == "stretch"
        client.classify(grey(255, (100, 200)))
        assert len(triton.requests) == 4  # and from now on at once

    def test_of_a_new_version_prepares_a_file_again_that_can_be_read_once(
        self, triton: FakeTriton, client: XrayClient
    ) -> None:
        file = io.BytesIO()
        Image.fromarray(grey(255, (100, 200))).save(file, "PNG")
        file.seek(0)
        assert client.preprocessing.geometry == "pad"
        triton.records["2"], triton.version = STRETCH, "2"
        assert client.classify(file).probability == 1.0

    def test_of_two_versions_that_take_turns_fits_each_answer(self, triton: FakeTriton, client: XrayClient) -> None:
        triton.records["2"] = STRETCH
        for version in "1212":
            triton.version = version
            answer = client.classify(grey(255, (100, 200)))
            assert answer.model_version == version
            assert (answer.probability == 1.0) == (version == "2")

    def test_that_changes_with_every_answer_is_a_mismatch(self, triton: FakeTriton, client: XrayClient) -> None:
        assert client.preprocessing.geometry == "pad"
        triton.records["2"] = STRETCH
        turns = iter("2121")
        triton.spoil = lambda outputs: setattr(triton, "version", next(turns))
        with pytest.raises(PreprocessingMismatch, match=r"version 1 .* wants its images prepared as .*pad.*try again"):
            client.classify(grey(255))
        assert len(triton.requests) == 2

    def test_of_an_image_prepared_beforehand_cannot_be_changed(self, triton: FakeTriton, client: XrayClient) -> None:
        prepared = client.preprocessing.apply(Image.fromarray(grey(255)))
        triton.records["2"], triton.version = STRETCH, "2"
        with pytest.raises(PreprocessingMismatch, match="prepare the image again with this client's `preprocessing`"):
            client.classify(prepared)
        assert client.preprocessing.geometry == "stretch"

    def test_of_a_model_without_batches_is_a_mismatch(self, triton: FakeTriton, client: XrayClient) -> None:
        triton.max_batch_size = 0
        with pytest.raises(ProtocolMismatch, match="no batch dimension"):
            client.classify(grey(1))

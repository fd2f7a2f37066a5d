"""The client prepares each image as the version that answers wants it."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from tests.helpers.radiographs import grey
from xray_client import Preprocessing, PreprocessingMismatch, ProtocolMismatch, XrayClient
from xray_client.testing import FakeServer

STRETCH = Preprocessing(geometry="stretch")
NEWER = Preprocessing().to_json().replace('"version": 2', '"version": 3')


class TestThePreprocessing:
    def test_is_asked_for_once_and_once_more_at_the_first_answer(self, fake: FakeServer, client: XrayClient) -> None:
        assert client.preprocessing == Preprocessing()
        for _ in range(3):
            client.classify(grey(1))
        assert client.preprocessing == Preprocessing()
        assert fake.calls["ModelConfig"] == 2

    @pytest.mark.parametrize("warm_up", [False, True])
    def test_of_the_version_that_was_asked_for_is_fetched_once(self, fake: FakeServer, warm_up: bool) -> None:
        fake.preprocessing["7"] = STRETCH
        fake.version = "7"
        with XrayClient(fake.url, model_version="7") as client:
            if warm_up:
                assert client.preprocessing == STRETCH
            for _ in range(3):
                assert client.classify(grey(1)).model_version == "7"
        assert fake.calls["ModelConfig"] == 1
        assert len(fake.requests) == 3

    def test_of_the_only_version_that_the_model_may_serve_is_fetched_once(self, fake: FakeServer) -> None:
        fake.version_named = True
        fake.serve("7", STRETCH)
        with XrayClient(fake.url) as client:
            for _ in range(3):
                assert client.classify(grey(1)).model_version == "7"
            assert fake.calls["ModelConfig"] == 1
            fake.serve("8", Preprocessing())
            assert client.classify(grey(255, (100, 200))).preprocessing == Preprocessing()
        assert fake.calls["ModelConfig"] == 2

    @pytest.mark.parametrize("version_named", [False, True])
    def test_of_a_fleet_with_two_versions_fits_each_answer(self, fake: FakeServer, version_named: bool) -> None:
        with FakeServer() as other, XrayClient(f"{fake.url},{other.url}") as client:
            fake.version_named = other.version_named = version_named
            fake.preprocessing["2"] = other.preprocessing["2"] = STRETCH
            other.version = "2"
            seen = set()
            for _ in range(8):
                try:
                    answer = client.classify(grey(255, (100, 200)))
                except PreprocessingMismatch:  # two servers in a row disagreed
                    continue
                seen.add(answer.model_version)
                assert (answer.probability > 0.99) == (answer.model_version == "2")
            assert seen

    @pytest.mark.parametrize(
        ("served", "words"), [(None, "does not say how"), (NEWER, "preprocessing version 3"), ("{", "not understood")]
    )
    def test_that_cannot_be_followed_is_a_mismatch(self, fake: FakeServer, served: str | None, words: str) -> None:
        fake.preprocessing["1"] = served
        with XrayClient(fake.url) as client:
            for call in (lambda: client.classify(grey(1)), lambda: client.preprocessing, client.check, client.info):
                with pytest.raises(PreprocessingMismatch, match=words) as caught:
                    call()
                assert caught.value.source == f"medclip at {fake.url}"
        assert not fake.requests

    def test_of_a_new_version_prepares_the_image_again(self, fake: FakeServer, client: XrayClient) -> None:
        client.classify(grey(255, (100, 200)))
        fake.serve("2", STRETCH)
        answer = client.classify(grey(255, (100, 200)))
        assert [request.image.min() > 0 for request in fake.requests] == [
            False,
            False,
            True,
        ]  # pad, pad, stretch
        assert (answer.model_version, answer.probability > 0.99) == ("2", True)
        assert answer.preprocessing.geometry == client.preprocessing.geometry == "stretch"
        client.classify(grey(255, (100, 200)))
        assert len(fake.requests) == 4  # and from now on at once

    def test_of_a_new_version_prepares_a_file_again_that_can_be_read_once(
        self, fake: FakeServer, client: XrayClient
    ) -> None:
        file = io.BytesIO()
        Image.fromarray(grey(255, (100, 200))).save(file, "PNG")
        file.seek(0)
        assert client.preprocessing.geometry == "pad"
        fake.serve("2", STRETCH)
        assert client.classify(file).probability > 0.99

    def test_of_two_versions_that_take_turns_fits_each_answer(self, fake: FakeServer, client: XrayClient) -> None:
        fake.preprocessing["2"] = STRETCH
        for version in "1212":
            fake.version = version
            answer = client.classify(grey(255, (100, 200)))
            assert answer.model_version == version
            assert (answer.probability > 0.99) == (version == "2")

    def test_that_changes_with_every_answer_is_a_mismatch(self, fake: FakeServer, client: XrayClient) -> None:
        assert client.preprocessing.geometry == "pad"
        fake.preprocessing["2"] = STRETCH
        turns = iter("2121")
        fake.alter = lambda outputs: setattr(fake, "version", next(turns))
        with pytest.raises(PreprocessingMismatch, match=r"version 1 .* wants its images prepared as .*pad.*try again"):
            client.classify(grey(255))
        assert len(fake.requests) == 2

    def test_of_an_image_prepared_beforehand_cannot_be_changed(self, fake: FakeServer, client: XrayClient) -> None:
        prepared = client.preprocessing.apply(Image.fromarray(grey(255)))
        fake.serve("2", STRETCH)
        with pytest.raises(PreprocessingMismatch, match="prepare the image again with this client's `preprocessing`"):
            client.classify(prepared)
        assert client.preprocessing.geometry == "stretch"

    def test_of_a_model_without_batches_is_a_mismatch(self, fake: FakeServer, client: XrayClient) -> None:
        fake.max_batch_size = 0
        with pytest.raises(ProtocolMismatch, match="no batch dimension"):
            client.classify(grey(1))

"""The client against a server that makes faults on demand."""

from __future__ import annotations

import io
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.gates import Gate, HangingFile
from tests.helpers.radiographs import grey
from xray_client import (
    DeadlineExceeded,
    ImageUnreadable,
    ImageUnsupported,
    ModelNotFound,
    Prediction,
    Preprocessing,
    PreprocessingMismatch,
    ServerNotReady,
    XrayClient,
    load_radiograph,
)
from xray_client.testing import FakeServer


class TestAnAnswer:
    def test_carries_everything_that_the_server_said(self, fake: FakeServer, client: XrayClient) -> None:
        answer = client.classify(grey(204))
        assert (answer.finding, answer.decision) == ("Pneumonia", 1)
        assert answer.probability == pytest.approx(0.8)
        assert (answer.novelty, answer.novel) == (0.5, False)
        assert (answer.model, answer.model_version, answer.file) == ("medclip", "1", None)
        assert answer.heatmap is not None
        assert (answer.heatmap.shape, answer.heatmap.dtype) == ((7, 7), np.float32)
        assert not answer.heatmap.flags.writeable
        assert answer.heatmap.sum() == pytest.approx(0.8, rel=1e-5)
        assert answer.preprocessing == Preprocessing()
        assert 0 < answer.timing.prepare_ms + answer.timing.server_ms <= answer.milliseconds < 5000

    def test_is_to_one_small_uint8_tensor(self, fake: FakeServer, client: XrayClient) -> None:
        client.classify(grey(7))
        (request,) = fake.requests
        (tensor,) = request.message.inputs
        assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("image", "UINT8", [1, 1, 224, 224])
        assert request.image.size == 50_176
        assert request.request_id

    def test_has_no_heatmap_where_none_was_asked_for(self, fake: FakeServer, client: XrayClient) -> None:
        assert client.classify(grey(7), heatmap=False).heatmap is None
        assert fake.requests[0].outputs == ("probability", "decision", "novelty")

    def test_is_the_same_for_a_path_bytes_a_file_an_array_and_a_pil_image(
        self, client: XrayClient, tmp_path: Path
    ) -> None:
        path = tmp_path / "chest.png"
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 200), dtype=np.uint8))
        image.save(path)
        data = path.read_bytes()
        with path.open("rb") as file:
            sources = [path, str(path), data, io.BytesIO(data), file, np.asarray(image), image]
            answers = [client.classify(source) for source in sources]
        assert len({answer.probability for answer in answers}) == 1
        assert [answer.file for answer in answers] == [str(path), str(path), None, None, str(path), None, None]

    def test_takes_an_image_that_was_prepared_beforehand(self, fake: FakeServer, client: XrayClient) -> None:
        prepared = load_radiograph(grey(100, (300, 200)), client.preprocessing)
        client.classify(prepared)
        assert np.array_equal(fake.requests[0].image, prepared)
        with pytest.raises(PreprocessingMismatch, match=r"prepared as \(1, 96, 96\)"):
            client.classify(np.zeros((1, 96, 96), np.uint8))

    def test_says_which_version_was_asked_for(self, fake: FakeServer) -> None:
        fake.preprocessing["2"] = fake.preprocessing["1"]
        with XrayClient(fake.url, model_version="1") as client:
            client.classify(grey(0))
        assert fake.requests[0].model_version == "1"

    def test_of_a_bad_image_is_the_readers_error(self, client: XrayClient, tmp_path: Path) -> None:
        with pytest.raises(ImageUnreadable, match="no such file"):
            client.classify(tmp_path / "missing.png")
        with pytest.raises(ImageUnsupported, match="an array of"):
            client.classify(np.zeros((2, 3, 4), np.uint8))


class TestHealth:
    def test_is_true_where_classify_would_work(self, client: XrayClient) -> None:
        assert client.health() is True
        client.check()

    def test_is_false_and_not_an_error_where_it_would_not(self, fake: FakeServer, client: XrayClient) -> None:
        fake.ready = False
        assert client.health() is False
        with pytest.raises(ServerNotReady, match="the server says that it is not ready"):
            client.check()
        with XrayClient(fake.url, model="other") as other:
            fake.ready = True
            assert other.health() is False
            with pytest.raises(ModelNotFound):
                other.check()
        fake.preprocessing["1"] = None
        assert client.health() is False

    def test_of_a_closed_client_is_false(self, client: XrayClient) -> None:
        client.close()
        assert client.health() is False


class TestTheClient:
    @pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
    def test_wants_a_timeout_that_ends(self, timeout: float) -> None:
        with pytest.raises(ValueError, match="timeout"):
            XrayClient(timeout=timeout)

    @pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 86_401])
    def test_wants_the_same_of_the_timeout_of_a_call(self, client: XrayClient, timeout: float) -> None:
        for call in (client.check, client.info, client.health, partial(client.classify, grey(1))):
            with pytest.raises(ValueError, match="timeout"):
                call(timeout=timeout)

    def test_takes_the_timeout_of_a_call_in_place_of_its_own(self, fake: FakeServer) -> None:
        with XrayClient(fake.url, timeout=60) as client:
            client.classify(grey(1))
            client.classify(grey(1), timeout=30)
            client.classify(grey(1), timeout=600)
        own, less, more = (request.timeout for request in fake.requests)
        assert 50 < own <= 60
        assert 20 < less <= 30
        assert 500 < more <= 600

    def test_gives_up_after_the_timeout_of_a_call(self, fake: FakeServer) -> None:
        gate = Gate()
        fake.alter = gate.hold
        with XrayClient(fake.url, timeout=3600) as client:
            with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
                client.classify(grey(1), timeout=0.3)
            fake.stop()
            gate.open()
        with socket.create_server(("127.0.0.1", 0)) as hole:
            client = XrayClient(f"127.0.0.1:{hole.getsockname()[1]}", timeout=3600)
            for call in (client.check, client.info):
                with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
                    call(timeout=0.3)
            assert client.health(timeout=0.3) is False

    @pytest.mark.parametrize("url", ["", "localhost", "http://localhost:8001", "localhost:", "a b:1", "::1:8001"])
    def test_wants_host_and_port(self, url: str) -> None:
        with pytest.raises(ValueError, match="is not host:port"):
            XrayClient(url)

    def test_can_be_closed_twice_and_not_used_afterwards(self, client: XrayClient) -> None:
        client.close()
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.classify(grey(1))

    def test_closed_by_another_thread_ends_the_calls_under_way(self, fake: FakeServer) -> None:
        gate, client = Gate(), XrayClient(fake.url, timeout=3600)
        fake.alter = gate.hold
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(client.classify, grey(1))
            gate.wait_for(1)
            client.close()
            with pytest.raises(RuntimeError, match="closed"):
                call.result()
        assert gate.closed
        gate.open()

    def test_serves_16_threads_at_a_time_and_mixes_nothing_up(self, fake: FakeServer, client: XrayClient) -> None:
        def work(level: int) -> Prediction:
            return client.classify(grey(level))

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(work, range(256)))
        assert [round(answer.probability * 255) for answer in answers] == list(range(256))
        assert fake.calls["ModelConfig"] == 2
        assert len({request.request_id for request in fake.requests}) == 256

    def test_gives_up_on_a_file_that_never_ends(self, fake: FakeServer) -> None:
        gate = Gate()
        with XrayClient(fake.url) as client:
            assert client.preprocessing
            with pytest.raises(ImageUnreadable, match=r"reading it did not end within 0\.4 s") as caught:
                client.classify(HangingFile(gate), timeout=0.4)
            assert (caught.value.model, caught.value.attempts) == ("medclip", 0)
        assert gate.closed
        gate.open()

    def test_shows_what_is_served(self, fake: FakeServer, client: XrayClient) -> None:
        info = client.info()
        assert (info.model, info.versions, info.server) == ("medclip", ("1",), "fake 2.51.0")
        assert info.preprocessing == Preprocessing()
        assert [(tensor.name, tensor.datatype, tensor.shape) for tensor in info.inputs] == [
            ("image", "UINT8", (-1, 1, 224, 224))
        ]

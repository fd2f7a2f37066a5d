"""The fake server that customers test with, through public names only."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.gates import Gate, wait_until
from tests.helpers.radiographs import grey
from xray_client import (
    FINDINGS,
    ModelNotFound,
    NotFinite,
    OutputMismatch,
    Preprocessing,
    PreprocessingMismatch,
    QueueFull,
    ServerUnreachable,
    XrayClient,
    load_radiograph,
    testing,
)
from xray_client.testing import FakeServer, outputs

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "client.md"


def test_the_example_of_the_manual_passes_as_a_test_of_pytest(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(import pytest\n.*?FakeServer.*?)```", MANUAL.read_text(), re.DOTALL)
    (tmp_path / "test_example.py").write_text(example)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_example.py"]
    bare = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_the_example_of_the_docstring_works() -> None:
    assert doctest.testmod(testing).failed == 0


def test_the_client_does_not_import_it() -> None:
    code = "import sys, xray_client, xray_client._client; assert 'xray_client.testing' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_it_imports_nothing_beyond_the_base_install() -> None:
    code = "import sys, xray_client.testing; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    others = {"torch", "onnx", "onnxruntime", "pytest", "xray_build", "finetune", "pydicom", "transformers"}
    assert "xray_client" in done.stdout.split()
    assert not others & set(done.stdout.split())


class TestItsAnswers:
    def test_are_the_mean_grey_level_by_default(self, client: XrayClient) -> None:
        assert client.classify(grey(204)).probability == pytest.approx(0.8)

    def test_are_what_the_test_says(self, fake: FakeServer, client: XrayClient) -> None:
        fake.answer = lambda image: outputs(0.4, decision=2, novelty=1.5, heatmap=np.eye(3))
        answer = client.classify(grey(0))
        assert (answer.finding, answer.novel) == (FINDINGS[2], True)
        assert answer.probability == pytest.approx(0.4)
        assert np.array_equal(answer.heatmap, np.eye(3, dtype=np.float32))

    def test_can_be_made_from_the_prepared_image(self, fake: FakeServer, client: XrayClient) -> None:
        shapes = []
        fake.answer = lambda image: shapes.append(image.shape) or outputs(0.1)  # type: ignore[func-returns-value]
        client.classify(grey(0, (30, 20)))
        assert shapes == [(1, 224, 224)]

    def test_can_break_the_contract(self, fake: FakeServer, client: XrayClient) -> None:
        fake.answer = lambda image: outputs(0.5, novelty=float("nan"))
        with pytest.raises(NotFinite):
            client.classify(grey(0))
        fake.answer, fake.alter = testing.mean_grey, lambda sent: sent.pop("decision")
        with pytest.raises(OutputMismatch, match="no output 'decision'"):
            client.classify(grey(0))


class TestItsFaults:
    def test_are_as_many_as_asked_for(self, fake: FakeServer) -> None:
        with XrayClient(fake.url, retries=0) as client:
            fake.fail("UNAVAILABLE", "Exceeds maximum queue size", times=2)
            for _ in range(2):
                with pytest.raises(QueueFull):
                    client.classify(grey(0))
            assert client.classify(grey(0)).decision == 0

    def test_last_until_it_recovers(self, fake: FakeServer) -> None:
        with XrayClient(fake.url, retries=0) as client:
            fake.fail("UNAVAILABLE", "Socket closed")
            for _ in range(3):
                with pytest.raises(ServerUnreachable):
                    client.classify(grey(0))
            fake.recover()
            assert client.classify(grey(0)).decision == 0

    def test_are_named_as_grpc_names_them(self, fake: FakeServer) -> None:
        with pytest.raises(KeyError, match="NONSENSE"):
            fake.fail("NONSENSE")

    def test_include_a_change_of_version(self, fake: FakeServer, client: XrayClient) -> None:
        prepared = load_radiograph(grey(0), client.preprocessing)
        assert client.classify(prepared).model_version == "1"
        fake.serve("2", Preprocessing(geometry="stretch"))
        with pytest.raises(PreprocessingMismatch):
            client.classify(prepared)
        assert client.classify(grey(0)).model_version == "2"

    def test_include_a_stop_and_a_start_at_the_same_address(self, fake: FakeServer) -> None:
        fake.stop()
        with XrayClient(fake.url) as client:
            assert client.health() is False
            fake.start()
            wait_until(client.health)


class TestWhatItRecords:
    def test_is_every_request_with_its_headers(self, fake: FakeServer) -> None:
        with XrayClient(fake.url, headers={"site": "7"}, timeout=5) as client:
            answer = client.classify(grey(9), heatmap=False, priority="routine")
        (request,) = fake.requests
        assert (request.request_id, request.priority) == (answer.request_id, 2)
        assert request.outputs == ("probability", "decision", "novelty")
        assert np.array_equal(request.image, grey(9)[None])
        assert request.headers["site"] == "7"
        assert 0 < request.timeout <= 5
        assert "Request" in repr(request)
        assert len(repr(request)) < 100

    def test_is_the_number_of_calls_by_method(self, fake: FakeServer, client: XrayClient) -> None:
        client.check()
        assert fake.calls == {"ServerReady": 1, "ModelConfig": 1, "ModelReady": 1, "ModelInfer": 1}
        assert not fake.requests, "a health check is no radiograph"

    def test_may_be_nothing(self) -> None:
        with FakeServer(record_requests=False) as server, XrayClient(server.url) as client:
            client.classify(grey(1))
            assert server.requests == []
            assert server.calls["ModelInfer"] == 1


def test_a_delay_ends_when_the_caller_gives_up(fake: FakeServer) -> None:
    fake.delay = 3600.0
    with XrayClient(fake.url, timeout=0.5) as client:
        assert len(list(client.classify_many([grey(1)] * 40, max_in_flight=40))) == 40
    fake.delay = 0.0
    with XrayClient(fake.url) as client:  # all 32 threads of the server are free again
        assert client.classify(grey(1)).decision == 0


def test_another_model_is_not_served() -> None:
    with FakeServer(model="other") as server, XrayClient(server.url) as client:
        with pytest.raises(ModelNotFound):
            client.check()
        with XrayClient(server.url, model="other") as other:
            assert other.classify(grey(1)).model == "other"


def test_requests_under_way_are_counted(fake: FakeServer, client: XrayClient) -> None:
    gate = Gate()
    fake.alter = gate.hold
    answers = client.classify_many([grey(1)] * 3, max_in_flight=2, timeout=60)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, answers)
        gate.wait_for(2)
        gate.open()
        first.result()
    assert len(list(answers)) == 2
    assert fake.most_in_flight == 2

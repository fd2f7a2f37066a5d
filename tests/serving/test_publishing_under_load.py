"""Versions that come and go under load, on a real Triton: every answer is one of a version that was live."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from tests.helpers.gates import wait_until
from tests.serving.test_publishing import FAULTS
from xray_build.artefacts import MODEL_CODE_FILE, ONNX_FILE
from xray_build.errors import BuildError
from xray_build.repository import publish as publishing
from xray_build.repository.publish import rollback, staged_version, versions
from xray_build.repository.versions import read_manifest
from xray_build.triton.server import TritonServer
from xray_client import Preprocessing, XrayClient, contract, load_radiograph


@dataclass
class Answered:
    """One answer of the server, and when it was asked for and came."""

    sent: float
    came: float
    version: int
    image: int
    probability: float


@dataclass
class Load:
    """Threads that classify without a pause, until the block ends."""

    url: str
    images: np.ndarray
    threads: int = 8
    answers: list[Answered] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(self.threads)
        self._client = XrayClient(self.url, timeout=30)
        self._work = [self._pool.submit(self._classify, number) for number in range(self.threads)]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for work in self._work:
            work.result()
        self._pool.shutdown()
        self._client.close()

    def go_on(self) -> None:
        """Wait for 50 further answers."""
        enough = len(self.answers) + 50
        wait_until(lambda: len(self.answers) >= enough)

    def _classify(self, number: int) -> None:
        while not self._over.is_set():
            number = (number + 1) % len(self.images)
            sent = time.monotonic()
            try:
                answer = self._client.classify(self.images[number])
            except Exception as err:
                self.failures.append(err)
                continue
            came = time.monotonic()
            self.answers.append(Answered(sent, came, int(answer.model_version), number, answer.probability))


def _with_temperature(graph: Path, factor: float, out: Path) -> None:
    """The same network, calibrated otherwise: other probabilities for every radiograph."""
    model = onnx.load(str(graph))
    (temperature,) = (tensor for tensor in model.graph.initializer if tensor.name == "temperature")
    value = numpy_helper.to_array(temperature) * np.float32(factor)
    temperature.CopyFrom(numpy_helper.from_array(value, "temperature"))
    onnx.save(model, str(out))


def _probabilities(version: Path, images: np.ndarray) -> np.ndarray:
    """Compute the probabilities of Pneumonia by the version's graph in this process."""
    session = onnxruntime.InferenceSession(str(version / ONNX_FILE), providers=["CPUExecutionProvider"])
    (probability,) = session.run([contract.PROBABILITY], {contract.IMAGE: images})
    return probability[:, contract.PNEUMONIA]


@pytest.mark.slow
def test_eight_threads_get_every_answer_from_a_live_version_while_versions_come_and_go(
    repository: Path, twenty_radiographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "model_repository"))
    graph = copy / contract.MODEL_NAME / "1" / ONNX_FILE
    preprocessing = Preprocessing(**read_manifest(graph.parent)["preprocessing"])
    files = sorted(twenty_radiographs.rglob("*.jpeg"))
    images = np.stack([load_radiograph(path, preprocessing) for path in files])
    live: dict[int, list[float]] = {1: [0.0, float("inf")]}

    def publish(factor: float, url: str) -> None:
        started, before = time.monotonic(), max(live)
        with staged_version(copy) as stage:
            _with_temperature(graph, factor, stage.folder / ONNX_FILE)
            version = stage.publish(preprocessing=preprocessing, about={}, images=images[:2], url=url).version
        live[version] = [started, float("inf")]
        live[before][1] = time.monotonic()

    with TritonServer(copy, port=0, metrics_port=0) as server, Load(server.url, images) as load:
        load.go_on()
        publish(1.5, server.url)
        publish(0.6, server.url)
        broken = tmp_path / MODEL_CODE_FILE
        broken.write_text(publishing._EMBEDDED_MODEL.read_text() + FAULTS["it answers wrongly"][0])
        with monkeypatch.context() as patch:
            patch.setattr(publishing, "_EMBEDDED_MODEL", broken)
            with pytest.raises(BuildError, match="answers wrongly"):
                publish(2.5, server.url)
        publish(3.0, server.url)
        started = time.monotonic()
        assert rollback(copy, url=server.url) == 3
        live[4][1] = time.monotonic()
        back = [started, float("inf")]
        load.go_on()
    assert load.failures == []
    expected = {
        version: _probabilities(copy / contract.MODEL_NAME / str(version), images) for version in versions(copy)
    }
    spans = {version: [span] for version, span in live.items()}
    spans[3].append(back)
    for answer in load.answers:
        assert answer.probability == pytest.approx(expected[answer.version][answer.image], abs=1e-4)
        assert any(start <= answer.came and answer.sent <= end for start, end in spans[answer.version])
    assert {answer.version for answer in load.answers} == {1, 2, 3, 4}, "each was seen"
    assert len(load.answers) > 100
    assert max(load.answers, key=lambda answer: answer.sent).version == 3
    assert np.abs(expected[2] - expected[3]).max() > 0.01, "the versions can be told apart"

"""STAT before routine, with the queues of the generated configurations, on a real Triton."""

from __future__ import annotations

import dataclasses
import io
import re
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import tritonclient.grpc as tritongrpc
from PIL import Image
from tritonclient.utils import InferenceServerException

from tests.helpers.gates import wait_until
from tests.helpers.radiographs import grey
from tests.helpers.small_graph import publish_small
from xray_build.artefacts import MODEL_CODE_FILE
from xray_build.repository.ensemble import decode_config, ensemble_config, metrics_config
from xray_build.repository.model_config import ENGINES, ROUTINE, STAT, QueuePolicy, ServingConfig, model_config
from xray_build.repository.pbtxt import to_text
from xray_build.triton.server import TritonServer
from xray_client import Preprocessing, Priority, XrayClient, contract

EMBEDDED = next(engine for engine in ENGINES if engine.name == "embedded")

# Waits while the file `closed` lies beside it.
GATE = """
import time
from pathlib import Path

def pass_gate():
    while (Path(__file__).parent / "closed").exists():
        time.sleep(0.01)
"""

# Notes the order of its requests by the first pixel of each.
GATED_MEDCLIP = f"""
import numpy as np
import triton_python_backend_utils as pb_utils
{GATE}
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            (first, *_) = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().ravel()
            with (Path(__file__).parent / "order").open("a") as order:
                order.write(f"{{first}} ")
        pass_gate()
        outputs = {{"probability": np.array([[0.5, 0.5]], np.float32), "decision": np.zeros((1, 1), np.int32),
                   "heatmap": np.zeros((1, 7, 7), np.float32), "novelty": np.zeros((1, 1), np.float32)}}
        tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items()]
        return [pb_utils.InferenceResponse(tensors) for _ in requests]
"""

# Appended to the code of `xray_decode`.
GATED_DECODE = f"""
{GATE}
_execute = TritonPythonModel.execute

def execute(self, requests):
    (Path(__file__).parent / "order").touch()
    pass_gate()
    return _execute(self, requests)

TritonPythonModel.execute = execute
"""


class GatedServer:
    """A server whose models take one request at a time, and whose gates hold the requests that they work on."""

    def __init__(self, server: TritonServer) -> None:
        self.url = server.url
        self._metrics_url = server.metrics_url
        self._repository = server.repository

    @contextmanager
    def closed(self, model: str) -> Iterator[Callable[[], None]]:
        """Close a model's gate; yields the function that opens it again."""
        gate = self._repository / model / "1" / "closed"
        gate.touch()
        try:
            yield gate.unlink
        finally:
            gate.unlink(missing_ok=True)
            for order in self._repository.rglob("order"):
                order.unlink()

    def works(self, model: str) -> bool:
        """True once a model has begun with a request."""
        return (self._repository / model / "1" / "order").exists()

    def waiting(self, model: str) -> int:
        """Requests in a model's queue, by Triton's own count."""
        with urllib.request.urlopen(self._metrics_url, timeout=10) as answer:
            metrics = answer.read().decode()
        counts = re.findall(rf'^nv_inference_pending_request_count\{{model="{model}".*\}} (\d+)', metrics, re.MULTILINE)
        return sum(int(count) for count in counts)

    def order(self) -> list[int]:
        """First pixels of the images, in the order in which `medclip` began with them."""
        text = (self._repository / contract.MODEL_NAME / "1" / "order").read_text()
        return [int(number) for number in text.split()]


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatedServer]:
    repository = tmp_path_factory.mktemp("gated") / "repository"
    version = publish_small(repository).folder
    serving = ServingConfig(
        Preprocessing(geometry="stretch"), max_batch_size=1, routine=QueuePolicy(timeout_s=60, longest=3)
    )
    one_at_a_time = dataclasses.replace(EMBEDDED, instances=1, preferred_batches=())
    medclip = model_config(one_at_a_time, serving)
    del medclip.model_warmup[:]
    for model, file, config in (
        (contract.MODEL_NAME, EMBEDDED.file, medclip),
        (contract.DECODE_MODEL, EMBEDDED.file, decode_config(EMBEDDED, serving)),
        (contract.METRICS_MODEL, "config.pbtxt", metrics_config(serving)),
        (contract.ENSEMBLE_MODEL, "config.pbtxt", ensemble_config(serving)),
    ):
        (repository / model / file).write_text(to_text(config))
    (version / MODEL_CODE_FILE).write_text(GATED_MEDCLIP)
    decode = repository / contract.DECODE_MODEL / "1" / MODEL_CODE_FILE
    decode.write_text(decode.read_text() + GATED_DECODE)
    with TritonServer(repository, port=0, metrics_port=0) as server:
        yield GatedServer(server)
        server.kill()


def test_an_urgent_request_overtakes_those_that_wait_and_who_cannot_wait_is_told(gated: GatedServer) -> None:
    with (
        tritongrpc.InferenceServerClient(gated.url) as client,
        XrayClient(gated.url, timeout=60) as sdk,
        ThreadPoolExecutor(8) as pool,
        gated.closed(contract.MODEL_NAME) as open_gate,
    ):

        def classify(number: int, priority: Priority) -> None:
            sdk.classify(grey(number), priority=priority)

        def ask(number: int, priority: int, timeout: int | None = None) -> None:
            tensor = tritongrpc.InferInput(contract.IMAGE, (1, 1, 224, 224), "UINT8")
            tensor.set_data_from_numpy(grey(number)[None, None])
            client.infer(contract.MODEL_NAME, [tensor], priority=priority, timeout=timeout, client_timeout=60)

        def waiting() -> int:
            return gated.waiting(contract.MODEL_NAME)

        asked = [pool.submit(ask, 1, ROUTINE)]
        wait_until(lambda: gated.works(contract.MODEL_NAME))
        calls = [(ask, 2, ROUTINE), (ask, 3, 0), (classify, 4, "routine"), (ask, 5, STAT), (classify, 6, "stat")]
        for before, call in enumerate(calls):
            asked.append(pool.submit(*call))
            wait_until(lambda before=before: waiting() == before + 1)
        with pytest.raises(InferenceServerException, match="maximum queue size"):
            ask(7, ROUTINE)
        hurried = pool.submit(ask, 8, STAT, 1000)  # microseconds
        wait_until(lambda: waiting() == 6)
        open_gate()
        for answer in asked:
            answer.result()
        assert "timeout expired" in str(hurried.exception())
        assert gated.order() == [1, 5, 6, 2, 3, 4]


@pytest.mark.parametrize("queue", [contract.DECODE_MODEL, contract.MODEL_NAME])
def test_an_urgent_file_overtakes_those_that_wait_in_either_queue_of_the_ensemble(
    gated: GatedServer, queue: str
) -> None:
    """Keep the promise of docs/protocol.md: the ensemble must hand the priority on to each of its steps."""

    def ask(number: int, priority: int) -> None:
        png = io.BytesIO()
        Image.fromarray(grey(number)).save(png, "PNG")
        tensor = tritongrpc.InferInput(contract.ENCODED, (1, 1), "BYTES")
        tensor.set_data_from_numpy(np.array([[png.getvalue()]], dtype=object))
        client.infer(contract.ENSEMBLE_MODEL, [tensor], priority=priority, client_timeout=60)

    with (
        tritongrpc.InferenceServerClient(gated.url) as client,
        ThreadPoolExecutor(5) as pool,
        gated.closed(queue) as open_gate,
    ):
        asked: list[Future[None]] = [pool.submit(ask, 1, ROUTINE)]
        wait_until(lambda: gated.works(queue))
        for before, (number, priority) in enumerate([(2, ROUTINE), (3, ROUTINE), (4, ROUTINE), (5, STAT)]):
            asked.append(pool.submit(ask, number, priority))
            wait_until(lambda before=before: gated.waiting(queue) == before + 1)
        open_gate()
        for answer in asked:
            answer.result()
        assert gated.order() == [1, 5, 2, 3, 4]

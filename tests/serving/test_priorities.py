"""Who goes first, with the queues of the generated configuration, on a real Triton."""

from __future__ import annotations

import dataclasses
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as tritongrpc
from tritonclient.utils import InferenceServerException

from tests.helpers.echo import wait_until
from tests.helpers.small_graph import publish_small
from xray_build.artefacts import MODEL_CODE_FILE
from xray_build.repository.model_config import ENGINES, ROUTINE, STAT, QueuePolicy, ServingConfig, model_config, text_of
from xray_build.triton.server import TritonServer
from xray_client import Priority, XrayClient, contract

EMBEDDED = next(engine for engine in ENGINES if engine.name == "embedded")

GATED = """
import time
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils

FOLDER = Path(__file__).parent

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            (first, *_) = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().ravel()
            with (FOLDER / "order").open("a") as order:
                order.write(f"{first} ")
        while not (FOLDER / "gate").exists():
            time.sleep(0.01)
        outputs = {"probability": np.array([[0.5, 0.5]], np.float32), "decision": np.zeros((1, 1), np.int32),
                   "heatmap": np.zeros((1, 7, 7), np.float32), "novelty": np.zeros((1, 1), np.float32)}
        tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items()]
        return [pb_utils.InferenceResponse(tensors) for _ in requests]
"""


def pending(server: TritonServer) -> int:
    """Requests that wait, by Triton's own count."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
        counts = re.findall(r"^nv_inference_pending_request_count\{.*\} (\d+)", answer.read().decode(), re.MULTILINE)
    return sum(int(count) for count in counts)


def test_an_urgent_request_overtakes_those_that_wait_and_who_cannot_wait_is_told(tmp_path: Path) -> None:
    """The generated queues, before a model that takes one request at a time and answers when a gate opens."""
    repository = tmp_path / "repository"
    version = publish_small(repository).folder
    one_at_a_time = dataclasses.replace(EMBEDDED, instances=1, preferred_batches=())
    config = model_config(one_at_a_time, ServingConfig(max_batch_size=1, routine=QueuePolicy(timeout_s=60, longest=3)))
    del config.model_warmup[:]
    (repository / contract.MODEL_NAME / EMBEDDED.file).write_text(text_of(config, EMBEDDED))
    (version / MODEL_CODE_FILE).write_text(GATED)
    with (
        TritonServer(repository, port=0, metrics_port=0, models=[contract.MODEL_NAME]) as server,
        tritongrpc.InferenceServerClient(server.url) as client,
        XrayClient(server.url, timeout=60) as sdk,
        ThreadPoolExecutor(8) as pool,
    ):

        def classify(number: int, priority: Priority) -> None:
            sdk.classify(np.full((224, 224), number, np.uint8), priority=priority)

        def ask(number: int, priority: int, timeout: int | None = None) -> None:
            tensor = tritongrpc.InferInput(contract.IMAGE, (1, 1, 224, 224), "UINT8")
            tensor.set_data_from_numpy(np.full((1, 1, 224, 224), number, np.uint8))
            client.infer(contract.MODEL_NAME, [tensor], priority=priority, timeout=timeout, client_timeout=60)

        asked = [pool.submit(ask, 1, ROUTINE)]
        wait_until((version / "order").exists, 30)
        those = [(ask, 2, ROUTINE), (ask, 3, 0), (classify, 4, "routine"), (ask, 5, STAT), (classify, 6, "stat")]
        for waiting, call in enumerate(those, start=1):
            asked.append(pool.submit(*call))
            wait_until(lambda waiting=waiting: pending(server) == waiting, 30)
        with pytest.raises(InferenceServerException, match="maximum queue size"):
            ask(7, ROUTINE)
        hurried = pool.submit(ask, 8, STAT, 1000)  # microseconds
        wait_until(lambda: pending(server) == 6, 30)
        (version / "gate").touch()
        for answer in asked:
            answer.result()
        assert "timeout expired" in str(hurried.exception())
    assert (version / "order").read_text().split() == ["1", "5", "6", "2", "3", "4"]

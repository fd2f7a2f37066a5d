"""What the model answers, as Triton's own metrics: read from the endpoint that Prometheus reads."""

from __future__ import annotations

import io
import os
import re
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as tritongrpc
from PIL import Image

from tests.helpers.deployed import healthy
from tests.helpers.radiographs import grey
from tests.helpers.small_graph import publish_small
from xray_build.triton.server import TritonServer
from xray_client import FINDINGS, XrayClient, contract
from xray_client.contract import DECISION, ENSEMBLE_MODEL, MODEL_NAME, NOVELTY, NOVELTY_LIMIT, PNEUMONIA, PROBABILITY

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
HISTOGRAM = "xray_pneumonia_probability_count"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A graph that finds very dark and very bright images new."""
    repository = tmp_path_factory.mktemp("metrics") / "model_repository"
    publish_small(repository, temperature=0.25)
    with TritonServer(repository, port=0, metrics_port=0) as server:
        yield server


def scrape(server: TritonServer) -> Series:
    """Our own series: name and labels -> value."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    lines = direct.open(server.metrics_url, timeout=10).read().decode().splitlines()
    found = [re.fullmatch(r"(xray_\w+)\{(.*)\} (\S+)", line) for line in lines]
    return {(m[1], frozenset(re.findall(r'(\w+)="([^"]*)"', m[2]))): float(m[3]) for m in found if m}


def total(series: Series, name: str, **labels: str) -> float:
    """Sum over all series of a name that have these labels."""
    return sum(value for (found, has), value in series.items() if found == name and labels.items() <= dict(has).items())


def counted(server: TritonServer, before: Series, expected: int, model: str) -> Series:
    """What was added since `before`, as soon as so many answers of a model were."""
    deadline = time.monotonic() + 10
    # The histogram is told last, and what is read while an answer is being told is of before and after it.
    while (told := total(scrape(server), HISTOGRAM, model=model) - total(before, HISTOGRAM, model=model)) < expected:
        assert time.monotonic() < deadline, f"{told} of {expected} answers were counted"
        time.sleep(0.05)
    return {key: value - before.get(key, 0) for key, value in scrape(server).items()}


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey(level)).save(file, "PNG")
    return file.getvalue()


def ask(server: TritonServer, levels: list[int], *outputs: str) -> dict[str, np.ndarray]:
    """One request to the ensemble; all outputs unless some are named."""
    encoded = tritongrpc.InferInput(contract.ENCODED, (len(levels), 1), "BYTES")
    encoded.set_data_from_numpy(np.array([[png(level)] for level in levels], dtype=object))
    wanted = [tritongrpc.InferRequestedOutput(name) for name in outputs] or None
    with tritongrpc.InferenceServerClient(server.url) as client:
        answer = client.infer(ENSEMBLE_MODEL, [encoded], outputs=wanted, client_timeout=30)
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}


def test_warming_up_counts_nothing_and_every_finding_starts_at_zero(served: TritonServer) -> None:
    with TritonServer(served.repository, port=0, metrics_port=0) as fresh:
        series = scrape(fresh)
    findings = {dict(labels)["finding"] for name, labels in series if name == "xray_answers_total"}
    assert findings == set(FINDINGS)
    assert set(series.values()) == {0}


def test_health_checks_are_not_counted(served: TritonServer, tmp_path: Path) -> None:
    before = scrape(served)
    with XrayClient(served.url) as client:
        for _ in range(3):
            assert client.health()
            assert healthy(served.url, tmp_path) == 0
        client.classify(grey(90))
    ask(served, [90])
    expected = {MODEL_NAME: 2, ENSEMBLE_MODEL: 1}  # the ensemble asks the model
    for model, count in expected.items():
        counted(served, before, count, model)
    added = counted(served, before, 2, MODEL_NAME)
    for model, count in expected.items():
        assert total(added, "xray_answers_total", model=model) == total(added, HISTOGRAM, model=model) == count


@pytest.mark.parametrize("model", [MODEL_NAME, contract.DECODE_MODEL])
def test_a_server_whose_model_has_lost_its_process_is_not_healthy(
    served: TritonServer, tmp_path: Path, model: str
) -> None:
    with TritonServer(served.repository, port=0, metrics_port=0) as fresh, XrayClient(fresh.url) as client:
        assert client.health()
        assert healthy(fresh.url, tmp_path) == 0
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (process / "cmdline").read_bytes()
                of_it = int((process / "stat").read_text().rpartition(")")[2].split()[2]) == fresh.pid
                if of_it and b"triton_python_backend_stub" in command and f"/{model}/".encode() in command:
                    os.kill(int(process.name), signal.SIGKILL)
        assert healthy(fresh.url, tmp_path) == 1
        assert client.health() is (model == contract.DECODE_MODEL)  # it prepares its images itself
        fresh.kill()


def test_every_answer_is_counted_once_while_many_callers_ask(served: TritonServer) -> None:
    before = scrape(served)
    levels = [int(level) for level in np.random.default_rng(0).integers(0, 256, 200)]
    with XrayClient(served.url) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda level: client.classify(grey(level)), levels))
    added = counted(served, before, len(levels), MODEL_NAME)
    expected = Counter(answer.finding for answer in answers)
    found = {name: total(added, "xray_answers_total", model=MODEL_NAME, finding=name) for name in FINDINGS}
    assert found == {name: expected[name] for name in FINDINGS}
    assert total(added, "xray_novel_total", model=MODEL_NAME) == sum(answer.novel for answer in answers) > 10
    probabilities = np.array([answer.probability for answer in answers])
    buckets = {dict(labels)["le"]: value for (name, labels), value in added.items() if name.endswith("_bucket")}
    assert len(buckets) > 10
    for bound, value in buckets.items():
        assert value == (probabilities <= float(bound)).sum(), bound
    assert total(added, "xray_pneumonia_probability_sum") == pytest.approx(probabilities.sum(), rel=1e-5)


def test_the_ensemble_counts_every_image_of_a_request_under_its_own_name(served: TritonServer) -> None:
    before = scrape(served)
    answer = ask(served, [0, 100, 250])
    added = counted(served, before, 3, ENSEMBLE_MODEL)
    for index, finding in enumerate(FINDINGS):
        expected = (answer[DECISION] == index).sum()
        assert total(added, "xray_answers_total", model=ENSEMBLE_MODEL, finding=finding) == expected
    assert total(added, "xray_novel_total", model=ENSEMBLE_MODEL) == (answer[NOVELTY] > NOVELTY_LIMIT).sum() == 2
    expected = answer[PROBABILITY][:, PNEUMONIA].sum()
    assert total(added, "xray_pneumonia_probability_sum", model=ENSEMBLE_MODEL) == pytest.approx(expected)


def test_what_is_counted_comes_out_of_the_ensemble_bit_for_bit_as_it_went_in(served: TritonServer) -> None:
    answer = ask(served, [90])
    tensor = tritongrpc.InferInput(contract.IMAGE, (1, 1, 224, 224), "UINT8")
    tensor.set_data_from_numpy(grey(90)[None, None])
    with tritongrpc.InferenceServerClient(served.url) as client:
        direct = client.infer(MODEL_NAME, [tensor], client_timeout=30)
    assert set(answer) == set(contract.OUTPUTS)
    for name, value in answer.items():
        assert value.tobytes() == direct.as_numpy(name).tobytes(), name


@pytest.mark.parametrize("output", [DECISION, PROBABILITY, NOVELTY])
def test_whoever_asks_for_one_output_alone_is_counted_and_gets_no_other(served: TritonServer, output: str) -> None:
    before = scrape(served)
    assert set(ask(served, [200], output)) == {output}
    added = counted(served, before, 1, ENSEMBLE_MODEL)
    assert total(added, "xray_answers_total", model=ENSEMBLE_MODEL) == 1


def test_labels_tell_of_model_version_and_finding_and_of_nothing_that_came_with_a_request(served: TritonServer) -> None:
    ask(served, [10])
    names = {name for _, labels in scrape(served) for name, _ in labels}
    assert names == {"model", "version", "finding", "le"}


def test_a_version_that_takes_over_is_counted_by_its_own_number_and_the_trial_before_it_is_not(
    served: TritonServer,
) -> None:
    before, added, asked = scrape(served), {}, 0
    number = publish_small(served.repository, temperature=0.25, url=served.url).version
    deadline = time.monotonic() + 10
    # Which version is loaded is known to within a second.
    while not total(added, "xray_answers_total", model=ENSEMBLE_MODEL, version=str(number)):
        assert time.monotonic() < deadline
        ask(served, [60])
        asked += 1
        added = counted(served, before, asked, ENSEMBLE_MODEL)
    assert total(added, "xray_answers_total", model=ENSEMBLE_MODEL, version=str(number)) == 1
    assert total(added, "xray_answers_total", model=ENSEMBLE_MODEL) == asked
    assert {dict(labels)["model"] for _, labels in added} == {MODEL_NAME, ENSEMBLE_MODEL}


def test_a_server_that_is_told_to_stop_under_load_ends_in_good_order(served: TritonServer) -> None:
    with TritonServer(served.repository, port=0, metrics_port=0) as fresh, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda level: ask(fresh, [level]), range(40)))
        assert fresh.stop()

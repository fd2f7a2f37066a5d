"""Encoded bytes in, the contract's outputs out: `xray_decode` and `xray_classifier` on a real Triton."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as tritongrpc
from PIL import Image
from pydicom.uid import JPEG2000Lossless, RLELossless
from tritonclient.utils import InferenceServerException

from benchmarks.soak_pictures import drawn
from tests.helpers.data import REAL_DATA
from tests.helpers.dicom_files import encoded as encoded_dicom
from tests.helpers.dicom_files import made
from tests.helpers.gates import wait_until
from tests.helpers.small_graph import publish_small
from xray_build.artefacts import MODEL_CODE_FILE
from xray_build.repository.ensemble import ENSEMBLE_MODELS, ensemble_files, write_ensemble
from xray_build.repository.pbtxt import parse_config
from xray_build.repository.publish import rollback
from xray_build.triton.process import ServerStartError, find_models
from xray_build.triton.server import TritonServer
from xray_client import ImageError, Preprocessing, XrayClient, contract, load_radiograph

ROOT = Path(__file__).resolve().parents[2]
PAD = Preprocessing(geometry="pad")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A small graph behind the two models, prepared by "pad", where a mistake shows most."""
    repository = tmp_path_factory.mktemp("ensemble") / "model_repository"
    publish_small(repository, geometry="pad")
    with TritonServer(repository, port=0, metrics_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def radiographs(twenty_radiographs: Path) -> list[bytes]:
    """A JPEG of either class, as large as a hospital's, and a PNG of one of them."""
    paths = sorted(twenty_radiographs.rglob("*.jpeg"))[::10]
    forms = ((paths[0], "JPEG", (1800, 1500)), (paths[1], "JPEG", (1200, 900)), (paths[0], "PNG", (700, 500)))
    files = []
    for path, form, size in forms:
        with Image.open(path) as image, io.BytesIO() as file:
            image.convert("L").resize(size, Image.Resampling.BICUBIC).save(file, form)
            files.append(file.getvalue())
    return files


@pytest.fixture(scope="module")
def dicoms(twenty_radiographs: Path) -> list[bytes]:
    """Chest radiographs that are truly MONOCHROME1: one made in two compressions, and real ones where there are any."""
    with Image.open(next(twenty_radiographs.rglob("*.jpeg"))) as image:
        pixels = 4095 - np.asarray(image.convert("L").resize((1000, 800)), np.uint16) * 16
    files = []
    for syntax in (RLELossless, JPEG2000Lossless):
        dataset = made(pixels, PhotometricInterpretation="MONOCHROME1")
        dataset.compress(syntax)
        files.append(encoded_dicom(dataset))
    return [*files, *(path.read_bytes() for path in sorted((REAL_DATA / "dicom").glob("RG1_*"))[:2])]


def ask(url: str, *images: bytes, model: str = contract.ENSEMBLE_MODEL) -> dict[str, np.ndarray]:
    """One request with these images."""
    with tritongrpc.InferenceServerClient(url) as client:
        answer = client.infer(model, [encoded(*images)], client_timeout=60)
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}


def encoded(*images: bytes) -> tritongrpc.InferInput:
    tensor = tritongrpc.InferInput(contract.ENCODED, (len(images), 1), "BYTES")
    tensor.set_data_from_numpy(np.array([[image] for image in images], dtype=object))
    return tensor


def probability(url: str, image: bytes) -> float:
    """Of the ensemble; the last digits depend on the company that the batcher gives an image."""
    return round(float(ask(url, image)[contract.PROBABILITY][0, contract.PNEUMONIA]), 5)


@contextmanager
def asked_meanwhile(url: str, image: bytes, *, callers: int) -> Iterator[tuple[list[float], set[str]]]:
    """Probabilities that the ensemble gives callers who ask all the time, in order, and how it refuses them."""
    seen: list[float] = []
    refusals: set[str] = set()
    ended = threading.Event()

    def keep_asking() -> None:
        while not ended.is_set():
            try:
                seen.append(probability(url, image))
            except InferenceServerException as err:
                refusals.add(f"{err.status()}: {err.message()}")

    with ThreadPoolExecutor(callers) as pool:
        asking = [pool.submit(keep_asking) for _ in range(callers)]
        try:
            yield seen, refusals
        finally:
            ended.set()
        for caller in asking:
            caller.result()


def refusal(url: str, *images: bytes, model: str = contract.ENSEMBLE_MODEL) -> str:
    with pytest.raises(InferenceServerException) as caught:
        ask(url, *images, model=model)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT", str(caught.value)
    return str(caught.value.message())


def direct(url: str, image: bytes) -> dict[str, np.ndarray]:
    """The same radiograph prepared here."""
    with XrayClient(url) as client:
        answer = client.classify(image)
    return {"probability": np.float32(answer.probability), "decision": answer.decision, "heatmap": answer.heatmap}


def test_the_committed_files_are_what_the_generator_writes() -> None:
    repository = ROOT / "model_repository"
    assert {name: (repository / name).read_text() for name in ensemble_files()} == ensemble_files()


def test_a_model_that_an_operator_tuned_outlives_a_publication_and_one_that_is_there_is_not_touched(
    tmp_path: Path,
) -> None:
    publish_small(tmp_path)
    path = tmp_path / contract.DECODE_MODEL / "config.pbtxt"
    path.write_text(path.read_text().replace('string_value: "4"', 'string_value: "16"'))
    publish_small(tmp_path)
    assert 'string_value: "16"' in path.read_text()
    assert write_ensemble(tmp_path) == [path]
    assert write_ensemble(tmp_path) == []
    assert not list(tmp_path.glob(".staging-*"))


def test_the_server_loads_all_three(served: TritonServer) -> None:
    assert served.models == dict.fromkeys((contract.MODEL_NAME, *ENSEMBLE_MODELS), ("1",))


def test_the_image_is_bit_for_bit_the_one_that_the_client_prepares(
    served: TritonServer, radiographs: list[bytes], dicoms: list[bytes]
) -> None:
    files = [*radiographs, *dicoms]
    images = ask(served.url, *files, model=contract.DECODE_MODEL)[contract.IMAGE]
    assert images.dtype == np.uint8
    for image, file in zip(images, files, strict=True):
        assert np.array_equal(image, load_radiograph(file, PAD))


def test_the_ensemble_answers_as_the_client_is_answered(served: TritonServer, radiographs: list[bytes]) -> None:
    answers = ask(served.url, *radiographs)
    assert set(answers) == set(contract.OUTPUTS)
    for row, file in enumerate(radiographs):
        prepared = direct(served.url, file)
        assert np.isclose(answers[contract.PROBABILITY][row, contract.PNEUMONIA], prepared["probability"], atol=1e-6)
        assert answers[contract.DECISION][row, 0] == prepared["decision"]
        assert np.allclose(answers[contract.HEATMAP][row], prepared["heatmap"], atol=1e-6)


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "too large"])
def test_what_cannot_be_read_is_refused_in_the_words_of_the_reader(
    served: TritonServer, radiographs: list[bytes], damage: str
) -> None:
    bad = {
        "text": b"<html>404</html>",
        "empty": b"",
        "truncated": radiographs[2][:5000],
        "too large": bytes(49 * 2**20),
    }[damage]
    if damage == "too large":
        expected = "51380224 bytes, more than 48 MiB"
    else:
        with pytest.raises(ImageError) as caught:
            load_radiograph(bad, PAD)
        expected = caught.value.message
    assert refusal(served.url, bad).split("the image: ")[1].startswith(expected)


def test_one_bad_image_in_a_request_fails_it_and_is_named(served: TritonServer, radiographs: list[bytes]) -> None:
    assert "image 2 of 3: not a PNG" in refusal(served.url, radiographs[0], b"no image", radiographs[1])


def test_of_requests_that_are_certainly_batched_together_only_the_bad_one_fails(tmp_path: Path) -> None:
    """`xray_decode` waits here until six requests are there, and decodes them in one go."""
    repository = tmp_path / "model_repository"
    publish_small(repository, geometry="pad")
    path = repository / contract.DECODE_MODEL / "configs" / "embedded.pbtxt"
    config = parse_config(path.read_text())
    config.dynamic_batching.preferred_batch_size.append(6)
    config.dynamic_batching.max_queue_delay_microseconds = 8_000_000
    path.write_text(str(config))
    good = [picture.data for picture in drawn(5)]
    with (
        TritonServer(repository, port=0, metrics_port=0) as server,
        tritongrpc.InferenceServerClient(server.url) as client,
        ThreadPoolExecutor(6) as pool,
    ):

        def batches() -> dict[int, int]:
            """How often `xray_decode` was run with how many images."""
            (statistics,) = client.get_inference_statistics(contract.DECODE_MODEL).model_stats
            return {batch.batch_size: batch.compute_infer.count for batch in statistics.batch_stats}

        expected = [direct(server.url, file) for file in good]
        for place, bad in enumerate((b"no image", b"", good[0][:5000])):
            files = [*good[:place], bad, *good[place:]]
            asked = [pool.submit(ask, server.url, file) for file in files]
            with pytest.raises(InferenceServerException, match="the image: "):
                asked.pop(place).result()
            for answer, prepared in zip(asked, expected, strict=True):
                assert np.allclose(answer.result()[contract.HEATMAP][0], prepared["heatmap"], atol=1e-6)
        assert batches() == {6: 3}
        server.kill()


def test_eight_callers_send_fuzzed_bytes_and_good_ones_are_answered_as_before(
    served: TritonServer, radiographs: list[bytes], dicoms: list[bytes]
) -> None:
    """Triton batches what arrives together: whatever is wrong with one request says nothing about the next."""
    good = radiographs[2]
    expected = probability(served.url, good)
    pid = served.pid
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def caller(seed: int) -> None:
        random = np.random.default_rng(seed)
        seeds = [radiographs[2], *dicoms, radiographs[1]]
        for _ in range(12):
            fuzzed = np.frombuffer(seeds[random.integers(len(seeds))], np.uint8).copy()
            fuzzed[random.integers(0, len(fuzzed), 1 + int(random.integers(40)))] = random.integers(0, 256)
            data = fuzzed[: int(random.integers(1, len(fuzzed) + 1))].tobytes()
            try:
                ask(served.url, data)
                outcome = "answered"
            except InferenceServerException as err:
                outcome = str(err.status()).removeprefix("StatusCode.")
            assert probability(served.url, good) == expected
            with lock:
                outcomes[outcome] += 1

    with ThreadPoolExecutor(8) as pool:
        for ended in [pool.submit(caller, seed) for seed in range(8)]:
            ended.result()
    assert set(outcomes) <= {"answered", "INVALID_ARGUMENT"}, outcomes
    assert outcomes["INVALID_ARGUMENT"] > 20, outcomes
    assert served.running
    assert served.pid == pid


def test_a_codec_that_crashes_costs_no_request_and_the_next_ones_are_answered(
    served: TritonServer, radiographs: list[bytes]
) -> None:
    """The processes that decode are killed while they work, as a fault in a codec would."""
    before = probability(served.url, radiographs[2])
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            asked = [pool.submit(probability, served.url, radiographs[2]) for _ in range(8)]
            for pid in decoders(served):
                with suppress(ProcessLookupError):  # it went with one of those before
                    os.kill(pid, signal.SIGKILL)
            assert {answer.result() for answer in asked} == {before}
    assert len(decoders(served)) > 0
    assert served.running


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("__import__('os').abort()", "its codec crashed (export it again"),
        ("eval('9**9**9')", "its codec did not end in time (export it again"),  # hours of work, deaf to SIGTERM
    ],
)
def test_a_file_that_crashes_or_hangs_its_codec_is_refused_alone_and_no_process_outlives_the_server(
    tmp_path: Path, radiographs: list[bytes], fault: str, words: str
) -> None:
    """No such file is known: the fault is made up, where the codec would be called."""
    repository = tmp_path / "model_repository"
    publish_small(repository)
    code = repository / contract.DECODE_MODEL / "1" / MODEL_CODE_FILE
    faulty = f"""
import xray_client.decoding as d
honest = d.load_radiograph
d.load_radiograph = lambda data, preprocessing: {fault} if data == b"fault" else honest(data, preprocessing)
"""
    last = "serve(int("
    code.write_text(f"""{code.read_text()}
import xray_client.decoding
program = xray_client.decoding._PROGRAM
xray_client.decoding._PROGRAM = program.replace({last!r}, {faulty!r} + {last!r})
""")
    with TritonServer(repository, port=0, metrics_port=0) as server:
        expected = probability(server.url, radiographs[2])
        with ThreadPoolExecutor(4) as pool:
            good = [pool.submit(probability, server.url, radiographs[2]) for _ in range(6)]
            assert f"the image: {words}" in refusal(server.url, b"fault")
            assert {answer.result() for answer in good} == {expected}
        left = decoders(server)
        assert left
        server.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))


def decoders(server: TritonServer) -> list[int]:
    """Processes that `xray_decode` decodes in: the children of its stub."""
    parents, stub = {}, 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode().replace("\0", " ")
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if "triton_python_backend_stub" in command and f"{server.repository}/{contract.DECODE_MODEL}/" in command:
            stub = int(process.name)
    assert stub, "xray_decode has no stub; 0 is the parent of processes that are not ours"
    return [pid for pid, parent in parents.items() if parent == stub]


def test_without_a_version_of_medclip_they_are_left_out(tmp_path: Path) -> None:
    write_ensemble(tmp_path)
    (tmp_path / contract.MODEL_NAME / "configs").mkdir(parents=True)
    with pytest.raises(ServerStartError, match=r"no model in .* has a version"):
        find_models(tmp_path)


def test_a_version_with_another_preprocessing_that_is_loaded_by_hand_is_never_answered_from_a_wrong_image(
    tmp_path: Path, radiographs: list[bytes]
) -> None:
    """The ensemble's requests are bound to a version of `medclip` before their files wait to be decoded."""
    repository = tmp_path / "model_repository"
    publish_small(repository, geometry="stretch")
    file = radiographs[2]
    with (
        TritonServer(repository, port=0, metrics_port=0) as server,
        tritongrpc.InferenceServerClient(server.url) as client,
    ):
        right = probability(server.url, file)
        with asked_meanwhile(server.url, file, callers=8) as (seen, refusals):
            publish_small(repository, geometry="pad", temperature=0.5)
            answered = len(seen)
            wait_until(lambda: len(seen) > answered + 8)  # nobody has loaded it
            client.load_model(contract.MODEL_NAME)
            wait_until(lambda: bool(refusals))
            rollback(repository)
            client.load_model(contract.MODEL_NAME)
        assert "restart the server" in unavailable(server.url, file), "a request may still be bound to the other one"
        server.kill()
    assert set(seen) == {right}
    assert all(words.startswith("StatusCode.UNAVAILABLE: ") for words in refusals), refusals
    with TritonServer(repository, port=0, metrics_port=0) as restarted:
        assert probability(restarted.url, file) == right
        restarted.kill()


def unavailable(url: str, image: bytes) -> str:
    with pytest.raises(InferenceServerException) as caught:
        ask(url, image)
    assert caught.value.status() == "StatusCode.UNAVAILABLE", str(caught.value)
    return str(caught.value.message())


def test_publishing_a_version_prepared_alike_never_interrupts_the_ensemble(
    tmp_path: Path, radiographs: list[bytes]
) -> None:
    repository = tmp_path / "model_repository"
    publish_small(repository)
    with TritonServer(repository, port=0, metrics_port=0) as server:
        before = probability(server.url, radiographs[2])
        with asked_meanwhile(server.url, radiographs[2], callers=1) as (seen, refusals):
            publish_small(repository, temperature=0.5, url=server.url)
            wait_until(lambda: seen[-1] != before)
        assert not refusals
        # As docs/protocol.md says: the ensemble's answer names itself, the metadata of `medclip` what answers in it.
        with tritongrpc.InferenceServerClient(server.url) as client:
            answer = client.infer(contract.ENSEMBLE_MODEL, [encoded(radiographs[2])]).get_response()
            assert answer.model_version == "1"
            assert client.get_model_metadata(contract.MODEL_NAME).versions == ["2"]
    assert seen[0] == before

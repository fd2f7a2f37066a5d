"""Processes that decode: the reader's own answers, and an end of those that crash, hang or come too late."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.gates import wait_until
from tests.helpers.radiographs import grey, level_of
from xray_client import (
    Failure,
    ImageTooLarge,
    ImageUnavailable,
    ImageUnreadable,
    ImageUnsupported,
    Preprocessing,
    XrayClient,
    decoding,
    load_radiograph,
)
from xray_client.decoding import Decoder, Decoders
from xray_client.testing import FakeServer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there are no such processes")

# Appended to the program, before it serves: no such file is known, so the fault is made up where a codec is called.
FAULTY = """
import os, signal
import xray_client.decoding as decoding
decoding.CPU_SECONDS = 1
honest = decoding.load_radiograph
faults = {
    b"crash": os.abort,
    b"kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    b"hang": lambda: signal.pause(),
    b"work": lambda: 9**9**9,
    b"grow": lambda: bytes(8 * 2**30),
    b"bug": lambda: 1 / 0,
}
decoding.load_radiograph = lambda data, preprocessing: faults.get(data, lambda: honest(data, preprocessing))()
"""


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def large() -> bytes:
    """A PNG of 36 megapixels, which takes the better part of a second."""
    return png(np.random.default_rng(0).integers(0, 256, (6000, 6000), dtype=np.uint8))


def children() -> list[int]:
    """Processes of this one that decode."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"xray_client.decoding" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    program = decoding._PROGRAM
    monkeypatch.setattr(decoding, "_PROGRAM", program.replace("serve(int(", f"{FAULTY}\nserve(int("))
    monkeypatch.setattr(decoding, "_shared", None)
    yield
    if decoding._shared is not None:
        decoding._shared.close()


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.end()


def test_the_image_and_the_errors_are_those_of_the_reader(decoder: Decoder, twenty_radiographs: Path) -> None:
    for preprocessing in (Preprocessing(), Preprocessing(geometry="stretch", version=1)):
        for file in sorted(twenty_radiographs.rglob("*.jpeg"))[::7]:
            data = file.read_bytes()
            assert np.array_equal(decoder.decode(data, preprocessing, 30), load_radiograph(data, preprocessing))
    with pytest.raises(ImageUnsupported, match="not a PNG, JPEG, TIFF, BMP or DICOM image"):
        decoder.decode(b"no image", Preprocessing(), 30)
    with pytest.raises(ImageTooLarge, match="more than 64 megapixels"):
        decoder.decode(png(np.zeros((8001, 8000), np.uint8)), Preprocessing(), 30)


def test_one_that_was_ended_from_outside_is_replaced(decoder: Decoder) -> None:
    data = png(grey(7))
    before = decoder.decode(data, Preprocessing(), 30)
    os.kill(decoder._process.pid, signal.SIGKILL)
    assert np.array_equal(decoder.decode(data, Preprocessing(), 30), before)


def test_one_that_does_not_come_up_says_nothing_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a verdict on the content is final: `xray-client watch` asks again."""
    monkeypatch.setattr(decoding, "_PROGRAM", "raise SystemExit(3)")
    with pytest.raises(ImageUnavailable, match=r"the process that decodes was ended \(3\)"):
        Decoder().decode(png(grey(7)), Preprocessing(), 30)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (b"kill", ImageUnavailable, "the process that decodes was ended (-9)"),
        (b"crash", ImageUnreadable, "its codec crashed"),
        (b"work", ImageUnreadable, "its codec did not end in time"),
        (b"grow", ImageTooLarge, "memory"),
        (b"bug", ImageUnreadable, "cannot be decoded (ZeroDivisionError)"),
    ],
)
@pytest.mark.usefixtures("faulty")
def test_an_image_that_is_a_fault_costs_no_other(
    fake: FakeServer, tmp_path: Path, fault: bytes, error: type[Exception], words: str
) -> None:
    (tmp_path / "fault.png").write_bytes(fault)
    for level in range(1, 5):
        (tmp_path / f"{level}.png").write_bytes(png(grey(level)))
    with XrayClient(fake.url, timeout=60, isolate=True) as client:
        answers = list(client.classify_many(sorted(tmp_path.iterdir()), max_in_flight=3))
    assert [level_of(answer) for answer in answers[:4]] == [1, 2, 3, 4]
    assert isinstance(answers[4], Failure)
    assert isinstance(answers[4].error, error)
    assert words in answers[4].error.message
    assert answers[4].error.source == str(tmp_path / "fault.png")


@pytest.mark.usefixtures("faulty")
def test_one_that_hangs_is_ended_at_the_deadline(fake: FakeServer) -> None:
    with XrayClient(fake.url, isolate=True) as client:
        others = set(children())
        client.classify(png(grey(1)))
        (hangs,) = set(children()) - others
        with pytest.raises(ImageUnavailable, match=r"did not end within 0\.3 s"):
            client.classify(b"hang", timeout=0.3)
        wait_until(lambda: hangs not in children())
        assert level_of(client.classify(png(grey(2)))) == 2


def test_a_large_image_is_decoded_aside_and_no_longer_than_its_deadline(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_shared", None)
    others = set(children())
    data, file = large(), tmp_path / "large.png"
    file.write_bytes(data)
    with XrayClient(fake.url, timeout=60) as client:
        answer = client.classify(file)
        assert answer.probability == pytest.approx(load_radiograph(data, client.preprocessing).mean() / 255, abs=1e-6)
        late = list(client.classify_many([file] * 6, timeout=0.2))  # the model is known by now
        assert {type(failure.error) for failure in late if isinstance(failure, Failure)} == {ImageUnavailable}
        assert len(late) == 6
        assert client.classify(file).probability == answer.probability
    assert decoding._shared is not None
    decoding._shared.close()
    wait_until(lambda: set(children()) <= others)


def test_more_callers_than_processes_wait_and_some_in_vain() -> None:
    decoders, data = Decoders(1), large()
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(decoders.decode, data, Preprocessing(), 60) for _ in range(2)]
        wait_until(lambda: decoders._idle.empty())
        with pytest.raises(TimeoutError):
            decoders.decode(data, Preprocessing(), 0.01)
        first, second = (answer.result() for answer in answers)
    assert np.array_equal(first, second)
    decoders.close()


def test_none_outlives_its_program() -> None:
    code = """
import sys, time
from xray_client.decoding import Decoders
decoders = Decoders(2, start=True)
print(*(decoder._process.pid for decoder in [decoders._idle.get(), decoders._idle.get()]), flush=True)
time.sleep(3600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        pids = program.stdout.readline().split()
        assert len(pids) == 2
        program.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_what_lies_in_the_working_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    decoder = Decoder()
    assert decoder.decode(png(grey(9)), Preprocessing(), 30).shape == (1, 224, 224)
    decoder.end()


def test_a_system_that_starts_no_process_says_so() -> None:
    with pytest.raises(ImageUnavailable, match="no process to decode it in: No such file"):
        Decoder("/no/such/interpreter")


def test_after_a_fork_the_processes_are_the_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_shared", None)
    mine, data = decoding.shared_decoders(), png(grey(3))
    before = mine.decode(data, Preprocessing(), 30)
    if (child := os.fork()) == 0:
        other = decoding.shared_decoders()
        same = np.array_equal(other.decode(data, Preprocessing(), 30), before)
        other.close()
        os._exit(0 if same and other is not mine else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(mine.decode(data, Preprocessing(), 30), before)
    mine.close()

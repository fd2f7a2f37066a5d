"""Soak: hours of mixed load on the local Triton, while versions come and go, and a server is killed and comes back.

    make soak                                    # ten minutes
    make soak ARGS="--minutes 60 --images DIR"   # an hour, on radiographs of your own

Two real servers on one repository, on this machine alone. One lives from beginning to end and takes the publications
and rollbacks; the other is killed (SIGKILL) and started anew, again and again. Meanwhile prepared images go to both
through `XrayClient`, STAT and routine, and files to the ensemble through NVIDIA's client, good ones and bad ones; slow
clients dribble bytes and hang up, or read the answers of their streams late. No call is given up on purpose: in this
release of Triton (2.51) that crashes the server now and then, and of a stream it keeps a version from being unloaded
(server#8034, mended in 2025).

Every file must get exactly one answer or one error of ours. An answer must be that of its own file and of the very
version that it names (of the ensemble: of a version that was published): the heatmap, 49 numbers, is compared with what
numpy makes of the picture. Versions differ in a temperature of their own, some in how pictures are prepared as well.

Memory and file handles of the lasting server, of its stubs and of this process are sampled. From five minutes on, what
they grow by in the second half must stay within a tenth of their level plus 20 MB, or plus 20 handles. Growth is the
median of the slopes between any two samples (Theil-Sen) times that time, and the level a median as well: a publication
loads the model twice for a moment. Ctrl-C gives the report so far.

Exit codes: 0 = nothing lost, nothing wrong, nothing grew; 1 = something did, and the report says what.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
import numpy.typing as npt
import tritonclient.grpc as tritongrpc
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from benchmarks.soak_samples import GROWTH, Samples, processes, usage
from tests.helpers.small_graph import publish_small
from xray_build.errors import BuildError
from xray_build.repository.publish import rollback
from xray_build.repository.versions import History
from xray_build.triton.server import ServerStartError, TritonServer
from xray_client import (
    RESEARCH_USE,
    Failure,
    ImageError,
    Prediction,
    Preprocessing,
    XrayClient,
    contract,
    load_radiograph,
)
from xray_client.console import signals_interrupt

GEOMETRIES = ("stretch", "pad")
CALL_S = 30.0
# A heatmap is at most 0.5; the last digits depend on the batch. Versions differ by a hundred times as much.
TOLERANCE = 1e-5
JUDGED_FROM_MINUTES = 5.0
# What the ensemble may say of a good file while its models are exchanged or its server is killed.
PASSING = ("UNAVAILABLE", "NOT_FOUND", "CANCELLED", "DEADLINE_EXCEEDED")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

Heatmap = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """A file, and what the graph makes of it at temperature 1, by the geometry; nothing where no answer is due."""

    name: str
    data: bytes
    heatmaps: dict[str, Heatmap]

    @classmethod
    def good(cls, name: str, data: bytes) -> Picture:
        """A file that must be answered."""
        heatmaps = {}
        for geometry in GEOMETRIES:
            prepared = load_radiograph(data, Preprocessing(geometry=geometry))
            patches = (prepared / 255.0 - 0.5).reshape(7, 32, 7, 32).mean(axis=(1, 3))
            heatmaps[geometry] = patches.astype(np.float32)
        return cls(name, data, heatmaps)


@dataclass(frozen=True)
class Version:
    """What tells a version from the others."""

    temperature: float
    geometry: str

    def answers(self, picture: Picture, heatmap: Heatmap) -> bool:
        """Whether this is its answer."""
        expected = picture.heatmaps[self.geometry] / self.temperature
        return bool(np.abs(heatmap - expected).max() < TOLERANCE)


def drawn(count: int = 12) -> list[Picture]:
    """Pictures of different sizes, shapes and formats, no two alike."""
    pictures = []
    for seed in range(count):
        values = np.random.default_rng(seed).integers(0, 256, (5 + seed % 3, 4 + seed % 4), dtype=np.uint8)
        size = (300 + 40 * seed, 500 - 10 * seed)
        data = io.BytesIO()
        kind = ("PNG", "JPEG")[seed % 2]
        Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).save(data, kind)
        pictures.append(Picture.good(f"drawn {seed}.{kind.lower()}", data.getvalue()))
    return pictures


def damaged(pictures: Sequence[Picture]) -> list[Picture]:
    """Files that must be refused."""
    bad = {"text": b"<html>404</html>", "empty": b"", "truncated": pictures[0].data[: len(pictures[0].data) // 3]}
    return [Picture(name, data, {}) for name, data in bad.items()]


class Ledger:
    """What was asked and what came of it, counted by all threads."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.outcomes: dict[str, Counter[str]] = {}
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def ask(self, caller: str, count: int = 1) -> None:
        """Before it is sent."""
        with self._lock:
            self.asked[caller] += count

    def note(self, caller: str, outcome: str) -> None:
        """One answer or one error."""
        with self._lock:
            self.outcomes.setdefault(caller, Counter())[outcome] += 1

    def fault(self, what: str) -> None:
        """What must never happen."""
        with self._lock:
            self.wrong.append(what)

    def lost(self, caller: str) -> int:
        """Asked and never answered; below 0 = answered more often than asked."""
        return self.asked[caller] - self.outcomes.get(caller, Counter()).total()


@dataclass
class Plan:
    """How long, how often.

    Args:
        seconds: Length.
        publish_s: Seconds between publications and rollbacks.
        kill_s: Seconds between two deaths of the second server.
    """

    seconds: float
    publish_s: float
    kill_s: float


class Soak:
    """One soak, in a folder of its own.

    Args:
        folder: Where the repository and the servers' logs are put.
        good: Files that must be answered.
        plan: How long, how often.
    """

    def __init__(self, folder: Path, good: list[Picture], plan: Plan) -> None:
        self.plan = plan
        self.pictures = good + damaged(good)
        self.ledger, self.samples = Ledger(), Samples()
        self.versions: dict[int, Version] = {}
        self.started = time.monotonic()
        self.stop = threading.Event()
        self._folder = folder
        self._repository = folder / "model_repository"
        self._publish()
        self.lasting, self.mortal = self._server("lasting"), self._server("mortal")

    def run(self) -> None:
        """Until the time is over, or Ctrl-C."""
        work: list[Callable[[], None]] = [
            lambda: self._direct("stat", 0),
            lambda: self._direct("routine", 1),
            lambda: self._ensemble(0),
            lambda: self._ensemble(1),
            self._dribble,
            self._read_late,
            self._publish_and_roll_back,
            self._kill_and_restart,
            self._sample,
        ]
        with ExitStack() as ended:
            ended.callback(lambda: self.mortal.kill())
            ended.enter_context(self.lasting)
            self.mortal.start()
            self.started = time.monotonic()
            threads = [threading.Thread(target=self._guarded, args=(each,), daemon=True) for each in work]
            for thread in threads:
                thread.start()
            try:
                while time.monotonic() < self.started + self.plan.seconds and self.lasting.running:
                    time.sleep(0.5)
                if not self.lasting.running:
                    self.ledger.fault(f"the lasting server has died: {self.lasting.last_errors()}")
            except KeyboardInterrupt:
                click.echo("interrupted: the report so far", err=True)
            self.stop.set()
            deadline = time.monotonic() + 2 * CALL_S + 60
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _guarded(self, work: Callable[[], None]) -> None:
        """An exception that is not one of ours is a fault, and ends this caller alone."""
        try:
            work()
        except Exception as err:
            self.ledger.fault(f"{type(err).__name__}: {err}")

    def _server(self, name: str, port: int = 0) -> TritonServer:
        return TritonServer(self._repository, port=port, metrics_port=0, log=self._folder / f"{name}.log")

    # Callers

    def _direct(self, priority: Any, seed: int) -> None:
        """Prepared images, to both servers."""
        choice = random.Random(seed)
        caller = f"direct, {priority}"
        with XrayClient(f"{self.lasting.url},{self.mortal.url}", timeout=CALL_S) as client:
            while not self.stop.is_set():
                files = choice.choices(self.pictures, k=8)
                self.ledger.ask(caller, len(files))
                answers = client.classify_many([file.data for file in files], max_in_flight=4, priority=priority)
                for number, answer in enumerate(answers):
                    self._judge(caller, files[number], answer)

    def _judge(self, caller: str, picture: Picture, answer: Prediction | Failure) -> None:
        if isinstance(answer, Failure):
            refused = isinstance(answer.error, ImageError)
            if refused and picture.heatmaps:
                self.ledger.fault(f"{caller}: {picture.name} was refused: {answer.error}")
            self.ledger.note(caller, "refused" if refused else type(answer.error).__name__)
            return
        self.ledger.note(caller, "answered")
        version = self.versions.get(int(answer.model_version))
        if (
            not picture.heatmaps
            or version is None
            or answer.heatmap is None
            or not version.answers(picture, answer.heatmap)
        ):
            self.ledger.fault(f"{caller}: {picture.name} got a wrong answer of version {answer.model_version}")

    def _ensemble(self, seed: int) -> None:
        """Files, to each server in turn."""
        choice = random.Random(seed)
        caller = "ensemble"
        with ExitStack() as opened:
            clients = [
                opened.enter_context(tritongrpc.InferenceServerClient(server.url))
                for server in (self.lasting, self.mortal)
            ]
            while not self.stop.is_set():
                picture = choice.choice(self.pictures)
                priority = choice.choice((1, 2))
                self.ledger.ask(caller)
                try:
                    self._judge_ensemble(caller, picture, ask(choice.choice(clients), picture.data, priority))
                except InferenceServerException as err:
                    self._judge_refusal(caller, picture, str(err.status()).removeprefix("StatusCode."), str(err))

    def _judge_ensemble(self, caller: str, picture: Picture, heatmap: Heatmap) -> None:
        self.ledger.note(caller, "answered")
        known = list(self.versions.values())
        if not picture.heatmaps or not any(version.answers(picture, heatmap) for version in known):
            self.ledger.fault(f"{caller}: {picture.name} got an answer that is of no version")

    def _judge_refusal(self, caller: str, picture: Picture, status: str, words: str) -> None:
        refused = status == "INVALID_ARGUMENT"
        self.ledger.note(caller, "refused" if refused else status)
        if refused and picture.heatmaps:
            self.ledger.fault(f"{caller}: {picture.name} was refused: {words}")
        elif not refused and status not in PASSING:
            self.ledger.fault(f"{caller}: {picture.name}: {status}: {words}")
        if not refused:
            self.stop.wait(0.2)  # its server is gone, or its models are being exchanged

    # Clients that nobody wants

    def _dribble(self) -> None:
        """Connections that say a byte now and then, and hang up in the middle."""
        host, _, port = self.lasting.url.rpartition(":")
        while not self.stop.wait(0.1):
            self.ledger.ask("dribbling connections")
            with suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as connection:
                for byte in PREFACE[: random.Random(int(port)).randint(1, len(PREFACE))] + bytes(9):
                    connection.sendall(bytes([byte]))
                    if self.stop.wait(0.05):
                        break
            self.ledger.note("dribbling connections", "hung up")

    def _read_late(self) -> None:
        """Streams of 50 images whose answers wait until somebody reads them."""
        image = service_pb2.ModelInferRequest.InferInputTensor(
            name=contract.IMAGE, datatype="UINT8", shape=[1, 1, 224, 224]
        )
        request = service_pb2.ModelInferRequest(
            model_name=contract.MODEL_NAME, inputs=[image], raw_input_contents=[bytes(224 * 224)]
        )
        with grpc.insecure_channel(self.lasting.url, [("grpc.enable_http_proxy", 0)]) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not self.stop.wait(1):
                self.ledger.ask("streams, read late", 50)
                stream = stub.ModelStreamInfer(iter([request] * 50), timeout=CALL_S)
                self.stop.wait(1)
                for answer in stream:
                    self.ledger.note("streams, read late", "refused" if answer.error_message else "answered")

    # Versions and servers that come and go

    def _publish(self, url: str | None = None) -> None:
        number = History.load(self._repository).highest + 1
        # Before it is published: it may answer before that returns.
        self.versions[number] = Version(1 + number / 100, GEOMETRIES[number // 3 % 2])
        publish_small(
            self._repository,
            temperature=self.versions[number].temperature,
            geometry=self.versions[number].geometry,
            url=url,
            timeout_s=60,
        )

    def _publish_and_roll_back(self) -> None:
        turn = 0
        while not self.stop.wait(self.plan.publish_s):
            turn += 1
            caller = "rollbacks" if turn % 3 == 0 else "publications"
            self.ledger.ask(caller)
            try:
                if caller == "rollbacks":
                    rollback(self._repository, url=self.lasting.url, timeout_s=60)
                else:
                    self._publish(self.lasting.url)
                self.ledger.note(caller, "done")
            except BuildError as err:
                # The server that is published into lives: nothing excuses this.
                self.ledger.note(caller, "failed")
                self.ledger.fault(f"{caller}: {err}")

    def _kill_and_restart(self) -> None:
        while not self.stop.wait(self.plan.kill_s):
            self.ledger.ask("servers killed")
            port = int(self.mortal.url.rpartition(":")[2])
            os.kill(self.mortal.pid, signal.SIGKILL)
            self.mortal.wait()
            self.mortal.kill()
            self.stop.wait(1)
            server = self._server("mortal", port)
            try:
                self.mortal = server.start()
                self.ledger.note("servers killed", "back")
            except ServerStartError as err:
                self.ledger.note("servers killed", "not back")
                self.ledger.fault(f"the second server did not come back: {err}")
                return

    # What is measured

    def _sample(self) -> None:
        every = max(0.5, min(5.0, self.plan.seconds / 120))
        while not self.stop.wait(every):
            server = usage([self.lasting.pid])
            stubs = usage([pid for pid in processes(self.lasting.pid) if pid != self.lasting.pid])
            here = usage([os.getpid()])
            measured = {"tritonserver": server, "its stubs": stubs, "client and publisher": here}
            values = {f"{name}, MB": memory for name, (memory, _) in measured.items()}
            values |= {f"{name}, handles": handles for name, (_, handles) in measured.items()}
            self.samples.add(time.monotonic() - self.started, values)


def ask(client: tritongrpc.InferenceServerClient, data: bytes, priority: int) -> Heatmap:
    """The ensemble's heatmap of one file."""
    tensor = tritongrpc.InferInput(contract.ENCODED, (1, 1), "BYTES")
    tensor.set_data_from_numpy(np.array([[data]], dtype=object))
    answer = client.infer(contract.ENSEMBLE_MODEL, [tensor], priority=priority, client_timeout=CALL_S)
    heatmap: Heatmap = answer.as_numpy(contract.HEATMAP)[0]
    return heatmap


def findings(soak: Soak) -> list[str]:
    """What was wrong; empty = nothing."""
    found = [f"{caller}: {count} lost" for caller in soak.ledger.asked if (count := soak.ledger.lost(caller))]
    found += soak.ledger.wrong
    if soak.samples.seconds and soak.samples.seconds[-1] >= JUDGED_FROM_MINUTES * 60:
        for name in soak.samples.values:
            level, growth, allowed = soak.samples.growth(name)
            if growth > allowed:
                found.append(f"{name}: grew by {growth:.0f} at a level of {level:.0f}; {allowed:.0f} are allowed")
    return found


def table(soak: Soak) -> str:
    """What happened, in Markdown."""
    lines = ["| | asked | outcomes | lost |", "|---|---|---|---|"]
    for caller, asked in sorted(soak.ledger.asked.items()):
        outcomes = ", ".join(f"{count:,} {name}" for name, count in soak.ledger.outcomes[caller].most_common())
        lines.append(f"| {caller} | {asked:,} | {outcomes} | {soak.ledger.lost(caller)} |")
    if len(soak.samples.seconds) > 3:
        lines += ["", "| second half | level | growth | allowed |", "|---|---|---|---|"]
        for name in soak.samples.values:
            level, growth, allowed = soak.samples.growth(name)
            lines.append(f"| {name} | {level:.0f} | {growth:+.1f} | {allowed:.0f} |")
    return "\n".join(lines)


def picture(samples: Samples, path: Path) -> None:
    """Memory and handles over the time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6), layout="constrained")
    for axis, unit in zip(axes, GROWTH, strict=True):
        for name, values in samples.values.items():
            if name.endswith(unit):
                axis.plot(np.array(samples.seconds) / 60, values, label=name.rpartition(", ")[0])
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    axes[1].set_xlabel("minutes")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def report(soak: Soak, out: Path) -> list[str]:
    """Write it all down; what was wrong."""
    found = findings(soak)
    if soak.samples.seconds:
        picture(soak.samples, out / "soak.png")
    record = {
        "seconds": soak.plan.seconds,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "asked": soak.ledger.asked,
        "outcomes": soak.ledger.outcomes,
        "findings": found,
        "samples": {"seconds": soak.samples.seconds, **soak.samples.values},
        "notice": RESEARCH_USE,
    }
    (out / "soak.json").write_text(json.dumps(record, indent=1) + "\n")
    click.echo(table(soak))
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    click.echo(f"\n{time.monotonic() - soak.started:.0f} s on {os.cpu_count()} cores, load {load}; {out}")
    for finding in found[:20]:
        click.echo(f"WRONG  {finding}")
    click.echo(f"{len(found)} findings. {RESEARCH_USE}")
    return found


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--minutes", type=click.FloatRange(0, 24 * 60, min_open=True), default=10.0, help="How long.")
@click.option("--publish-every", type=click.FloatRange(1), default=15.0, help="Seconds between two publications.")
@click.option("--kill-every", type=click.FloatRange(1), default=30.0, help="Seconds that the second server lives.")
@click.option("--images", type=click.Path(path_type=Path, exists=True), help="Radiographs to send.  [default: drawn]")
@click.option("--out", type=click.Path(path_type=Path), help="New folder for the report.  [default: in runs/soak]")
def main(minutes: float, publish_every: float, kill_every: float, images: Path | None, out: Path | None) -> None:
    """Command line."""
    folder = (out or Path("runs") / "soak" / time.strftime("%Y%m%d-%H%M%S")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with signals_interrupt():
        files = sorted(path for path in images.rglob("*") if path.is_file())[:40] if images else []
        good = [Picture.good(path.name, path.read_bytes()) for path in files] or drawn()
        soak = Soak(folder, good, Plan(minutes * 60, publish_every, kill_every))
        soak.run()
        sys.exit(1 if report(soak, folder) else 0)


if __name__ == "__main__":
    main()

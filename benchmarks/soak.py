"""Soak: hours of mixed load on the local Triton, while versions come and go and a server is killed again and again.

    make bench PART=soak                                    # ten minutes
    make bench PART=soak DATA=chest_xray ARGS="--minutes 60"   # an hour, on radiographs of your own

Two real servers on one repository, on this machine alone. One lives from beginning to end and takes the publications
and rollbacks; the other is killed (SIGKILL) and restarted, again and again. Meanwhile prepared images go to both
through `XrayClient`, STAT and routine, and files to the ensemble through NVIDIA's client, good ones and bad ones; slow
clients dribble bytes and hang up, or read the answers of their streams late. No call is cancelled on purpose: in this
release of Triton (2.51) that crashes the server now and then, and a cancelled stream keeps a version from being
unloaded (server#8034, fixed in 2025).

Every file must get exactly one answer or one typed error. An answer must belong to its own file and to the very
version that it names (from the ensemble: to a published version): the heatmap, 49 numbers, is compared with the one
that numpy computes from the picture. Each version divides by a temperature of its own.

Memory and file handles of the steady server, its stubs and this process are sampled. From five minutes on, their
growth in the second half must stay within a tenth of their level plus 20 MB, or plus 20 handles. Growth is the median
of the slopes between any two samples (Theil-Sen) times that time, and the level is a median too: a publication loads
the model twice for a moment. Ctrl-C ends the soak early and prints the report so far.

Exit codes: 0 = nothing lost, wrong or growing; 1 = the report names the faults.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import grpc
import numpy as np
import tritonclient.grpc as tritongrpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from benchmarks.machine import processes_of
from benchmarks.soak_ledger import Ledger, Samples, usage
from benchmarks.soak_pictures import Heatmap, Picture, damaged, drawn
from benchmarks.soak_report import report
from tests.helpers.small_graph import publish_small
from xray_build.errors import BuildError
from xray_build.repository.publish import rollback
from xray_build.repository.versions import VersionLog
from xray_build.triton.server import ServerStartError, TritonServer
from xray_client import Endpoints, Failure, ImageError, Prediction, Preprocessing, XrayClient, contract
from xray_client.channel import channel_options
from xray_client.console import signals_interrupt

CALL_S = 30.0
MOST_IMAGES = 40
# Statuses of the ensemble for a good file that are allowed while its models are exchanged or its server is killed.
TRANSIENT = ("UNAVAILABLE", "NOT_FOUND", "CANCELLED", "DEADLINE_EXCEEDED")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass
class Plan:
    """Length of a soak, and its rhythm.

    Args:
        seconds: Length.
        publish_s: Seconds between publications and rollbacks.
        kill_s: Seconds between two kills of the restarted server.
    """

    seconds: float
    publish_s: float
    kill_s: float


class Soak:
    """One soak, in a folder of its own.

    Args:
        folder: Where the repository and the servers' logs are put.
        good: Files that must be answered.
        plan: Length and rhythm.
    """

    def __init__(self, folder: Path, good: list[Picture], plan: Plan) -> None:
        self.plan = plan
        self.pictures = good + damaged(good)
        self.ledger, self.samples = Ledger(), Samples()
        self.temperatures: dict[int, float] = {}
        self.started = time.monotonic()
        self.stop = threading.Event()
        self._folder = folder
        self._repository = folder / "model_repository"
        self._publish()
        self.steady, self.restarted = self._server("steady"), self._server("restarted")

    def run(self) -> None:
        """Soak until the time is over, or Ctrl-C."""
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
            ended.callback(lambda: self.restarted.kill())
            ended.enter_context(self.steady)
            self.restarted.start()
            self.started = time.monotonic()
            threads = [threading.Thread(target=self._guarded, args=(each,), daemon=True) for each in work]
            for thread in threads:
                thread.start()
            try:
                while time.monotonic() < self.started + self.plan.seconds and self.steady.running:
                    time.sleep(0.5)
                if not self.steady.running:
                    self.ledger.fault(f"the steady server has died: {self.steady.last_errors()}")
            except KeyboardInterrupt:
                click.echo("interrupted: the report so far", err=True)
            self.stop.set()
            deadline = time.monotonic() + 2 * CALL_S + 60
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _guarded(self, work: Callable[[], None]) -> None:
        """Count an unexpected exception as a fault; it ends this caller alone."""
        try:
            work()
        except Exception as err:
            self.ledger.fault(f"{type(err).__name__}: {err}")

    def _server(self, name: str, port: int = 0) -> TritonServer:
        return TritonServer(self._repository, port=port, metrics_port=0, log=self._folder / f"{name}.log")

    # Callers

    def _direct(self, priority: Literal["stat", "routine"], seed: int) -> None:
        """Send prepared images to both servers."""
        choice = random.Random(seed)
        caller = f"direct, {priority}"
        with XrayClient(f"{self.steady.url},{self.restarted.url}", timeout=CALL_S) as client:
            while not self.stop.is_set():
                files = choice.choices(self.pictures, k=8)
                self.ledger.ask(caller, len(files))
                answers = client.classify_many([file.data for file in files], max_in_flight=4, priority=priority)
                for number, answer in enumerate(answers):
                    self._check(caller, files[number], answer)

    def _check(self, caller: str, picture: Picture, answer: Prediction | Failure) -> None:
        if isinstance(answer, Failure):
            refused = isinstance(answer.error, ImageError)
            if refused and picture.heatmap is not None:
                self.ledger.fault(f"{caller}: {picture.name} was refused: {answer.error}")
            self.ledger.note(caller, "refused" if refused else type(answer.error).__name__)
            return
        self.ledger.note(caller, "answered")
        temperature = self.temperatures.get(int(answer.model_version))
        if temperature is None or not picture.matches(answer.heatmap, temperature):
            self.ledger.fault(f"{caller}: {picture.name} got a wrong answer of version {answer.model_version}")

    def _ensemble(self, seed: int) -> None:
        """Send files to the ensemble of either server."""
        choice = random.Random(seed)
        caller = "ensemble"
        with ExitStack() as opened:
            clients = [
                opened.enter_context(tritongrpc.InferenceServerClient(server.url))
                for server in (self.steady, self.restarted)
            ]
            while not self.stop.is_set():
                picture = choice.choice(self.pictures)
                priority = choice.choice((1, 2))
                self.ledger.ask(caller)
                try:
                    self.check_ensemble_answer(caller, picture, ask(choice.choice(clients), picture.data, priority))
                except InferenceServerException as err:
                    self.check_ensemble_error(caller, picture, str(err.status()).removeprefix("StatusCode."), str(err))

    def check_ensemble_answer(self, caller: str, picture: Picture, heatmap: Heatmap) -> None:
        """Count an answer; it must be that of a published version."""
        self.ledger.note(caller, "answered")
        if not any(picture.matches(heatmap, temperature) for temperature in list(self.temperatures.values())):
            self.ledger.fault(f"{caller}: {picture.name} got an answer that is of no version")

    def check_ensemble_error(self, caller: str, picture: Picture, status: str, message: str) -> None:
        """Count an error; a good file may only see the statuses that pass."""
        refused = status == "INVALID_ARGUMENT"
        self.ledger.note(caller, "refused" if refused else status)
        if refused and picture.heatmap is not None:
            self.ledger.fault(f"{caller}: {picture.name} was refused: {message}")
        elif not refused and status not in TRANSIENT:
            self.ledger.fault(f"{caller}: {picture.name}: {status}: {message}")
        if not refused:
            self.stop.wait(0.2)  # the server is gone, or its models are being exchanged

    # Unwanted clients

    def _dribble(self) -> None:
        """Open connections that send a byte now and then, and hang up in the middle."""
        host, _, port = self.steady.url.rpartition(":")
        while not self.stop.wait(0.1):
            self.ledger.ask("dribbling connections")
            with suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as connection:
                for byte in PREFACE[: random.Random(int(port)).randint(1, len(PREFACE))] + bytes(9):
                    connection.sendall(bytes([byte]))
                    if self.stop.wait(0.05):
                        break
            self.ledger.note("dribbling connections", "hung up")

    def _read_late(self) -> None:
        """Stream 50 images at a time, and read the answers late."""
        image = service_pb2.ModelInferRequest.InferInputTensor(
            name=contract.IMAGE, datatype="UINT8", shape=[1, 1, 224, 224]
        )
        request = service_pb2.ModelInferRequest(
            model_name=contract.MODEL_NAME, inputs=[image], raw_input_contents=[bytes(224 * 224)]
        )
        with grpc.insecure_channel(self.steady.url, channel_options(Endpoints.parse(self.steady.url))) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not self.stop.wait(1):
                self.ledger.ask("streams, read late", 50)
                stream = stub.ModelStreamInfer(iter([request] * 50), timeout=CALL_S)
                self.stop.wait(1)
                for answer in stream:
                    self.ledger.note("streams, read late", "refused" if answer.error_message else "answered")

    # Versions and servers that come and go

    def _publish(self, url: str | None = None) -> None:
        number = VersionLog.load(self._repository).highest + 1
        # Known before it is published: it may answer before that returns.
        self.temperatures[number] = 1 + number / 100
        publish_small(
            self._repository,
            temperature=self.temperatures[number],
            geometry=Preprocessing().geometry,
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
                    rollback(self._repository, url=self.steady.url, timeout_s=60)
                else:
                    self._publish(self.steady.url)
                self.ledger.note(caller, "done")
            except BuildError as err:
                # The server that is published into is alive: nothing excuses this.
                self.ledger.note(caller, "failed")
                self.ledger.fault(f"{caller}: {err}")

    def _kill_and_restart(self) -> None:
        while not self.stop.wait(self.plan.kill_s):
            self.ledger.ask("servers killed")
            port = int(self.restarted.url.rpartition(":")[2])
            os.kill(self.restarted.pid, signal.SIGKILL)
            self.restarted.wait()
            self.restarted.kill()
            self.stop.wait(1)
            server = self._server("restarted", port)
            try:
                self.restarted = server.start()
                self.ledger.note("servers killed", "back")
            except ServerStartError as err:
                self.ledger.note("servers killed", "not back")
                self.ledger.fault(f"the second server did not come back: {err}")
                return

    # Measurements

    def _sample(self) -> None:
        every = max(0.5, min(5.0, self.plan.seconds / 120))
        while not self.stop.wait(every):
            server = usage([self.steady.pid])
            stubs = usage([pid for pid in processes_of(self.steady.pid) if pid != self.steady.pid])
            here = usage([os.getpid()])
            measured = {"tritonserver": server, "its stubs": stubs, "client and publisher": here}
            values = {f"{name}, MB": memory for name, (memory, _) in measured.items()}
            values |= {f"{name}, handles": handles for name, (_, handles) in measured.items()}
            self.samples.add(time.monotonic() - self.started, values)


def ask(client: tritongrpc.InferenceServerClient, data: bytes, priority: int) -> Heatmap:
    """Ask the ensemble for the heatmap of one file."""
    tensor = tritongrpc.InferInput(contract.ENCODED, (1, 1), "BYTES")
    tensor.set_data_from_numpy(np.array([[data]], dtype=object))
    answer = client.infer(contract.ENSEMBLE_MODEL, [tensor], priority=priority, client_timeout=CALL_S)
    heatmap: Heatmap = answer.as_numpy(contract.HEATMAP)[0]
    return heatmap


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__)
@click.option("--minutes", type=click.FloatRange(0, 24 * 60, min_open=True), default=10.0, help="Length, minutes.")
@click.option("--publish-every", type=click.FloatRange(1), default=15.0, help="Seconds between two publications.")
@click.option("--kill-every", type=click.FloatRange(1), default=30.0, help="Seconds between two kills of a server.")
@click.option("--images", type=click.Path(path_type=Path, exists=True), help="Radiographs to send.  [default: drawn]")
@click.option("--out", type=click.Path(path_type=Path), help="New folder for the report.  [default: in runs/soak]")
def main(minutes: float, publish_every: float, kill_every: float, images: Path | None, out: Path | None) -> None:
    """Run the command line; see the module's text."""
    folder = (out or Path("runs") / "soak" / time.strftime("%Y%m%d-%H%M%S")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with signals_interrupt():
        files = sorted(path for path in images.rglob("*") if path.is_file())[:MOST_IMAGES] if images else []
        good = [Picture.answerable(path.name, path.read_bytes()) for path in files] or drawn()
        soak = Soak(folder, good, Plan(minutes * 60, publish_every, kill_every))
        soak.run()
        taken_s = time.monotonic() - soak.started
        faults = report(soak.ledger, soak.samples, folder, planned_s=soak.plan.seconds, taken_s=taken_s)
        sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()

"""The local server against NVIDIA's real tritonserver; the models are a few lines of Python each.

Processes are looked for in /proc, so that nothing here trusts the code under test to know what it left behind.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from click.testing import CliRunner
from tritonclient.utils import InferenceServerException

from xray_build import _tritonserver, server
from xray_build._tritonserver import TritonWheel
from xray_build.server import ServerStartError, TritonServer, main
from xray_client import RESEARCH_USE

CONFIG = """
backend: "python"
max_batch_size: 8
input [{ name: "x" data_type: TYPE_UINT8 dims: [ 1 ] }]
output [{ name: "y" data_type: TYPE_UINT8 dims: [ 1 ] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""

# As /proc/net/tcp writes addresses.
LOOPBACK = "0100007F"
IPV4_IN_IPV6 = "0000000000000000FFFF0000"

# Seconds until a process that was sent SIGKILL is gone.
KILLED_WITHIN = 3

# Answers what it is sent, after as many tenths of a second; leaves the file `busy` when it begins.
ECHO = """
import time
from pathlib import Path
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        (Path(__file__).parent / "busy").touch()
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        time.sleep(sum(x.sum() for x in inputs) / 10)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x + OFFSET)]) for x in inputs]

OFFSET = 0
"""

# Never comes back, and holds Python's lock meanwhile, so that its stub cannot look for its parent either.
STUCK = """
import ctypes
from pathlib import Path

class TritonPythonModel:
    def execute(self, requests):
        (Path(__file__).parent / "busy").touch()
        ctypes.PyDLL(None).sleep(600)
"""


def write_model(repository: Path, name: str, code: str | None, *, version: str = "1", config: str = CONFIG) -> Path:
    """Write a version of a model with `configs/embedded.pbtxt` and no `config.pbtxt`; returns the version's folder."""
    folder = repository / name / version
    folder.mkdir(parents=True)
    (repository / name / "configs").mkdir(exist_ok=True)
    (repository / name / "configs" / "embedded.pbtxt").write_text(config)
    if code is not None:
        (folder / "model.py").write_text(code)
    return folder


def ask(url: str, value: int, *, model: str = "echo") -> int:
    with triton.InferenceServerClient(url) as client:
        sent = triton.InferInput("x", [1, 1], "UINT8")
        sent.set_data_from_numpy(np.array([[value]], np.uint8))
        return int(client.infer(model, [sent], client_timeout=30).as_numpy("y")[0, 0])


def ask_in_background(url: str, value: int, folder: Path, *, model: str = "echo") -> Future[int]:
    """Send a request and return once the model works on it."""
    (folder / "busy").unlink(missing_ok=True)
    pool = ThreadPoolExecutor(1)
    answer = pool.submit(ask, url, value, model=model)
    wait_until((folder / "busy").exists)
    pool.shutdown(wait=False)
    return answer


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def processes(repository: Path) -> dict[int, str]:
    """Every tritonserver and stub that works on this repository: process id -> program."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        program = Path(command[0]).name
        if program in ("tritonserver", "triton_python_backend_stub") and str(repository) in "\0".join(command):
            found[int(process.name)] = program
    return found


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses that a process listens on for TCP: (address in hexadecimal, port)."""
    sockets = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(str(file.readlink()))
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, port = fields[1].split(":")
                found.add((address.removeprefix(IPV4_IN_IPV6), int(port, 16)))
    return found


def port_of(url: str) -> int:
    return int(url.removeprefix("http://").split("/")[0].split(":")[1])


def traces(pid: int) -> list[Path]:
    """What a running tritonserver has on the disk and in shared memory for itself alone."""
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    (backends,) = (Path(word.partition("=")[2]) for word in command if word.startswith("--backend-directory="))
    (prefix,) = (word.rpartition("=")[2] for word in command if "shm-region-prefix-name" in word)
    return [backends, *Path("/dev/shm").glob(f"{prefix}*")]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path / "repository", "echo", ECHO)
    return tmp_path / "repository"


def any_port(repository: Path, **options: Any) -> TritonServer:
    return TritonServer(repository, **{"port": 0, "metrics_port": 0, **options})


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield holder.getsockname()[1]


# Ready and answering


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("running") / "repository"
    write_model(repository, "echo", ECHO)
    write_model(repository, "other", ECHO, version="7")
    write_model(repository, "unpublished", None, version=".staging-1")
    before = dict(os.environ)
    with any_port(repository) as started:
        assert dict(os.environ) == before, "the server's libraries must not reach other programs"
        yield started


def test_a_started_server_answers(running: TritonServer) -> None:
    assert ask(running.url, 3) == 3


def test_it_knows_its_models_with_their_versions(running: TritonServer) -> None:
    assert running.models == {"echo": ("1",), "other": ("7",)}


def test_a_model_without_a_version_is_left_out_and_it_is_said_so(running: TritonServer) -> None:
    assert running.notices == ["left out model 'unpublished': it has no version"]


def test_it_listens_on_this_machine_alone_with_grpc_and_metrics_and_no_http(running: TritonServer) -> None:
    assert listening(running.pid) == {(LOOPBACK, port_of(running.url)), (LOOPBACK, port_of(running.metrics_url))}


def test_its_metrics_can_be_scraped(running: TritonServer) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert b"nv_inference_request_success" in direct.open(running.metrics_url, timeout=10).read()


def test_its_log_lies_beside_the_repository(running: TritonServer) -> None:
    assert running.log is not None
    assert running.log.parent == running.repository.parent / "runs" / "server"
    assert "successfully loaded 'echo'" in running.log.read_text()


def test_a_version_published_beside_the_live_one_is_served_after_a_load_and_not_before(running: TritonServer) -> None:
    write_model(running.repository, "other", ECHO.replace("OFFSET = 0", "OFFSET = 100"), version="8")
    assert ask(running.url, 1, model="other") == 1
    with triton.InferenceServerClient(running.url) as client:
        client.load_model("other")
    assert ask(running.url, 1, model="other") == 101


def test_it_outlives_the_thread_that_started_it(repository: Path) -> None:
    started: list[TritonServer] = []
    thread = threading.Thread(target=lambda: started.append(any_port(repository).start()))
    thread.start()
    thread.join()
    time.sleep(0.5)
    assert ask(started[0].url, 1) == 1
    started[0].kill()


def test_nothing_is_left_after_it_has_stopped(repository: Path) -> None:
    with any_port(repository) as started:
        left = traces(started.pid)
        assert sorted(processes(repository).values()) == ["triton_python_backend_stub", "tritonserver"]
        assert len(left) == 2
    assert processes(repository) == {}
    assert not any(path.exists() for path in left)


def test_a_request_that_never_ends_is_cut_off_when_the_time_to_drain_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "UNLOAD_S", 0.5)
    folder = write_model(tmp_path / "repository", "echo", STUCK)
    stuck = any_port(tmp_path / "repository", drain=1).start()
    left = traces(stuck.pid)
    answer = ask_in_background(stuck.url, 0, folder)
    assert not stuck.stop()
    with pytest.raises(InferenceServerException):
        answer.result(5)
    wait_until(lambda: processes(tmp_path / "repository") == {}, KILLED_WITHIN)
    assert not any(path.exists() for path in left)


# Ports


def test_where_the_default_port_is_taken_it_takes_a_free_one_and_says_so(
    repository: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(server.DEFAULT_PORTS, "port", taken_port)
    started = TritonServer(repository, metrics_port=0).start()
    assert ask(started.url, 1) == 1
    assert started.notices == [f"port {taken_port} is in use; took {port_of(started.url)} instead"]
    started.kill()


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(repository: Path, taken_port: int) -> None:
    with pytest.raises(ServerStartError, match=f"^port {taken_port} is in use .choose another with --port or leave"):
        any_port(repository, port=taken_port).start()
    with pytest.raises(ServerStartError, match=f"^port {taken_port} is in use .choose another with --metrics-port or"):
        any_port(repository, metrics_port=taken_port).start()


def lose_ports(monkeypatch: pytest.MonkeyPatch, *taken: int) -> None:
    """Make the first probes find these ports free, as if somebody had taken them right after."""
    really_hold, lost = server._hold_port, list(taken)
    monkeypatch.setattr(server, "_hold_port", lambda held, port: lost.pop(0) if lost else really_hold(held, port))


@pytest.mark.parametrize("which", ["port", "metrics_port"])
def test_a_port_lost_after_it_was_found_free_is_replaced_by_another(
    repository: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        other = free.getsockname()[1]
    lose_ports(monkeypatch, *((taken_port, other) if which == "port" else (other, taken_port)))
    started = any_port(repository).start()
    assert taken_port not in (port_of(started.url), port_of(started.metrics_url))
    assert ask(started.url, 1) == 1
    started.kill()
    wait_until(lambda: processes(repository) == {}, KILLED_WITHIN)


def test_a_port_that_was_asked_for_and_is_lost_after_it_was_found_free_is_an_error(
    repository: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_ports(monkeypatch, taken_port)
    with pytest.raises(ServerStartError, match=f"^port {taken_port} is in use"):
        any_port(repository, port=taken_port).start()


# Repositories that cannot be served


def test_a_missing_repository_is_an_error_that_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match=r"there is no model repository .*finetune.run --data DIR"):
        TritonServer(tmp_path / "nothing").start()


def test_a_repository_without_any_published_version_is_an_error_that_says_how_to_get_one(tmp_path: Path) -> None:
    write_model(tmp_path, "medclip", ECHO, version=".staging-1")
    write_model(tmp_path, "medclip", ECHO, version="next")
    (tmp_path / "README.md").touch()
    with pytest.raises(ServerStartError, match=r"no model in .* has a version to serve .*finetune.run --data DIR"):
        TritonServer(tmp_path).start()


def test_a_model_that_was_asked_for_must_be_there_with_a_version(repository: Path) -> None:
    write_model(repository, "unpublished", None, version=".staging-1")
    with pytest.raises(ServerStartError, match=r"there is no model 'medclip' .*it has echo, unpublished"):
        TritonServer(repository, models=["medclip"]).start()
    with pytest.raises(ServerStartError, match=r"model 'unpublished' in .* has no version"):
        TritonServer(repository, models=["unpublished"]).start()


def test_only_the_models_asked_for_are_loaded(repository: Path) -> None:
    write_model(repository, "broken", "import no_such_module")
    started = any_port(repository, models=["echo"]).start()
    assert set(started.models) == {"echo"}
    started.kill()


SLEEPS = """
import time

class TritonPythonModel:
    def initialize(self, args):
        time.sleep(600)
"""

RAISES = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("the weights are damaged:\\nwrong sha256")
"""


@pytest.mark.parametrize(
    ("code", "config", "reason"),
    [
        pytest.param(
            RAISES,
            CONFIG,
            r"^model 'broken' failed to load: ValueError: the weights are damaged: wrong sha256 \(at .*/model.py\(4\)",
            id="raises",
        ),
        pytest.param("import no_such_module", CONFIG, r"ModuleNotFoundError: No module named 'no_such_", id="import"),
        pytest.param(None, CONFIG, r"a model failed to load: Python model file not found in '.*/broken/1", id="file"),
        pytest.param(ECHO, CONFIG + "colour: 1", r"embedded.pbtxt: 7:7: .* no field named \"colour\"", id="config"),
        pytest.param(
            ECHO, CONFIG.replace("python", "tensorrt"), r"give the model a configs/embedded.pbtxt for the", id="backend"
        ),
    ],
)
def test_a_broken_model_is_an_error_that_shows_tritons_reason_on_one_line(
    tmp_path: Path, code: str | None, config: str, reason: str
) -> None:
    write_model(tmp_path, "broken", code, config=config)
    with pytest.raises(ServerStartError) as caught:
        any_port(tmp_path).start()
    assert re.search(reason, str(caught.value))
    assert "\n" not in str(caught.value)
    wait_until(lambda: processes(tmp_path) == {}, KILLED_WITHIN)


def test_a_start_that_takes_too_long_is_given_up(repository: Path) -> None:
    write_model(repository, "sleeps", SLEEPS)
    with pytest.raises(ServerStartError, match=r"not ready within 1 s.*--timeout"):
        any_port(repository, timeout=1).start()
    wait_until(lambda: processes(repository) == {}, KILLED_WITHIN)


# Installations that cannot serve; the faults are made up


def test_without_nvidias_wheel_the_error_names_the_extra(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tritonserver, "find_spec", lambda name: None)
    with pytest.raises(ServerStartError, match=r'pip install "medclip-triton\[server\]"'):
        TritonServer(repository).start()


def test_numpy_2_is_refused_before_the_start(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.1.0")
    with pytest.raises(ServerStartError, match=r'needs numpy 1, and numpy 2.1.0 is installed .*pip install "numpy>='):
        TritonServer(repository).start()


def test_a_python_that_the_wheel_has_no_stub_for_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tritonserver, "PYTHON", "3.99")
    with pytest.raises(ServerStartError, match=r"no stub for Python 3.99 .use one of 3.8, .*3.12"):
        TritonServer(repository).start()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("#!/bin/sh\necho needs GLIBC_2.99\nexit 1", "needs GLIBC_2.99"),
        ("#!/bin/sh\nexit 3", "tritonserver ended without a word"),
        ("no program at all", "cannot run .*: Exec format error"),
    ],
)
def test_a_tritonserver_that_does_not_run_is_an_error_with_its_last_words(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    fake = tmp_path / "tritonserver"
    fake.write_text(script)
    fake.chmod(0o755)
    broken = dataclasses.replace(TritonWheel.find(), program=fake)
    monkeypatch.setattr(TritonWheel, "find", staticmethod(lambda: broken))
    with pytest.raises(ServerStartError, match=reason):
        any_port(repository).start()


# The command line


class CommandLine:
    """`xray-server` as a user runs it, in a process of its own."""

    def __init__(self, repository: Path, *options: str) -> None:
        command = [sys.executable, "-m", "xray_build.server", "--repository", str(repository), *options]
        # Killed, it cannot clear away its temporary folder: that shall be one of the test's.
        environment = {**os.environ, "TMPDIR": str(repository.parent)}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        found = re.match(r"READY at (\S+): .* pid (\d+);", self.ready)
        assert found, self.ready + self.process.communicate()[1]
        self.url, self.tritonserver = found[1], int(found[2])
        self.notice = self.process.stdout.readline().strip()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for the end: exit code, stderr."""
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@pytest.fixture
def start(repository: Path) -> Iterator[Callable[..., CommandLine]]:
    started: list[CommandLine] = []

    def run(*options: str, ready: bool = True) -> CommandLine:
        started.append(CommandLine(repository, "--port", "0", "--metrics-port", "0", *options))
        if ready:
            started[-1].wait_until_ready()
        return started[-1]

    yield run
    for command in started:
        command.process.kill()
        command.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_line_says_that_it_is_ready_and_a_signal_ends_it_after_the_request_in_flight(
    repository: Path, tmp_path: Path, start: Callable[..., CommandLine], number: signal.Signals
) -> None:
    log = tmp_path / "my.log"
    command = start("--log", str(log))
    assert "echo (version 1)" in command.ready
    assert f"log {log}" in command.ready
    assert command.notice == RESEARCH_USE
    answer = ask_in_background(command.url, 8, repository / "echo" / "1")
    command.signal(number)
    code, errors = command.end()
    assert answer.result(0) == 8
    assert code == 0, errors
    assert "Stopped." in errors
    assert processes(repository) == {}


def test_a_signal_before_it_is_ready_ends_it_at_once(repository: Path, start: Callable[..., CommandLine]) -> None:
    write_model(repository, "sleeps", SLEEPS)
    command = start(ready=False)
    wait_until(lambda: "triton_python_backend_stub" in processes(repository).values())
    command.signal(signal.SIGINT)
    assert command.end() == (0, "Stopped before it was ready.\n")
    wait_until(lambda: processes(repository) == {}, KILLED_WITHIN)


def test_a_second_ctrl_c_cuts_the_requests_off(repository: Path, start: Callable[..., CommandLine]) -> None:
    command = start()
    answer = ask_in_background(command.url, 200, repository / "echo" / "1")
    command.signal(signal.SIGINT)
    time.sleep(0.5)
    assert command.process.poll() is None
    command.signal(signal.SIGINT)
    code, errors = command.end()
    assert code == 1
    assert "requests in flight were cut off" in errors
    wait_until(lambda: processes(repository) == {}, KILLED_WITHIN)
    with pytest.raises(InferenceServerException):
        answer.result(5)


def test_when_it_is_killed_tritonserver_and_its_stubs_go_too(
    repository: Path, start: Callable[..., CommandLine]
) -> None:
    command = start()
    ask_in_background(command.url, 200, repository / "echo" / "1")
    assert len(processes(repository)) == 2
    command.signal(signal.SIGKILL)
    wait_until(lambda: processes(repository) == {}, KILLED_WITHIN)


def test_when_tritonserver_is_killed_its_stubs_go_and_the_command_fails_and_says_why(
    tmp_path: Path, start: Callable[..., CommandLine]
) -> None:
    stuck = write_model(tmp_path / "repository", "stuck", STUCK)
    command = start()
    left = traces(command.tritonserver)
    ask_in_background(command.url, 1, stuck, model="stuck")
    os.kill(command.tritonserver, signal.SIGKILL)
    code, errors = command.end()
    assert code == 1
    assert "Error: tritonserver ended by itself (killed by SIGKILL): its log shows no error (see " in errors
    wait_until(lambda: processes(tmp_path / "repository") == {}, KILLED_WITHIN)
    assert not any(path.exists() for path in left)


def test_a_mistake_is_one_line_and_exit_code_1(tmp_path: Path, taken_port: int) -> None:
    write_model(tmp_path, "echo", ECHO)
    for options, message in (
        (["--repository", str(tmp_path / "nothing")], "there is no model repository"),
        (["--repository", str(tmp_path), "--port", str(taken_port)], f"port {taken_port} is in use"),
        (["--repository", str(tmp_path), "--log", "/proc/nothing/server.log"], "No such file or directory: /proc/no"),
    ):
        result = CliRunner().invoke(main, options)
        assert result.exit_code == 1
        assert result.output.startswith(f"Error: {message}")
        assert result.output.count("\n") == 1

"""The command `xray-server`, as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tritonclient.utils import InferenceServerException

from tests.helpers.echo import (
    ECHO,
    SLEEPS,
    STUCK,
    ask_in_background,
    processes,
    traces,
    write_model,
)
from tests.helpers.gates import wait_until
from xray_build.triton.server import main
from xray_client import RESEARCH_USE


class CommandLine:
    """`xray-server` as a user runs it, in a process of its own."""

    def __init__(self, repository: Path, *options: str) -> None:
        command = [sys.executable, "-m", "xray_build.triton.server", "--repository", str(repository), *options]
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

    def wait_for(self, words: str) -> None:
        """Wait until stderr has a line with these words."""
        assert self.process.stderr is not None
        assert any(words in line for line in iter(self.process.stderr.readline, "")), f"it ended without: {words}"

    def end(self) -> tuple[int, str]:
        """Wait for the end: exit code, stderr."""
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@pytest.fixture
def start(echo_repository: Path) -> Iterator[Callable[..., CommandLine]]:
    started: list[CommandLine] = []

    def run(*options: str, ready: bool = True) -> CommandLine:
        started.append(CommandLine(echo_repository, "--port", "0", "--metrics-port", "0", *options))
        if ready:
            started[-1].wait_until_ready()
        return started[-1]

    yield run
    for command in started:
        command.process.kill()
        command.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_line_says_that_it_is_ready_and_a_signal_ends_it_after_the_request_in_flight(
    echo_repository: Path, tmp_path: Path, start: Callable[..., CommandLine], number: signal.Signals
) -> None:
    log = tmp_path / "my.log"
    command = start("--log", str(log))
    assert "echo (version 1)" in command.ready
    assert f"log {log}" in command.ready
    assert command.notice == RESEARCH_USE
    answer = ask_in_background(command.url, 8, echo_repository / "echo" / "1")
    command.signal(number)
    code, errors = command.end()
    assert answer.result(0) == 8
    assert code == 0, errors
    assert "Stopped." in errors
    assert processes(echo_repository) == {}


def test_a_signal_before_it_is_ready_ends_it_at_once(echo_repository: Path, start: Callable[..., CommandLine]) -> None:
    write_model(echo_repository, "sleeps", SLEEPS)
    command = start(ready=False)
    wait_until(lambda: "triton_python_backend_stub" in processes(echo_repository).values())
    command.signal(signal.SIGINT)
    assert command.end() == (0, "Stopped before it was ready.\n")
    wait_until(lambda: processes(echo_repository) == {})


def test_a_second_ctrl_c_cuts_the_requests_off(echo_repository: Path, start: Callable[..., CommandLine]) -> None:
    command = start()
    answer = ask_in_background(command.url, 200, echo_repository / "echo" / "1")
    command.signal(signal.SIGINT)
    command.wait_for("Finishing the requests in flight")
    assert command.process.poll() is None
    command.signal(signal.SIGINT)
    code, errors = command.end()
    assert code == 1
    assert "requests in flight were cut off" in errors
    wait_until(lambda: processes(echo_repository) == {})
    with pytest.raises(InferenceServerException):
        answer.result(5)


def test_when_it_is_killed_tritonserver_and_its_stubs_go_too(
    echo_repository: Path, start: Callable[..., CommandLine]
) -> None:
    command = start()
    ask_in_background(command.url, 200, echo_repository / "echo" / "1")
    assert len(processes(echo_repository)) == 2
    command.signal(signal.SIGKILL)
    wait_until(lambda: processes(echo_repository) == {})


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
    wait_until(lambda: processes(tmp_path / "repository") == {})
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

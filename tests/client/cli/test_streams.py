"""Standard streams that are closed, full or broken, and Ctrl-C at any moment: one line, a documented exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.cli.test_classify import save
from xray_client.cli.options import ExitCode
from xray_client.testing import FakeServer

PROGRAM = Path(sys.executable).with_name("xray-client")
FULL = "No space left on device"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the streams of a shell")


def shell(command: str, fake: FakeServer) -> subprocess.CompletedProcess[str]:
    """Run a command of a shell, in which `x` is the program."""
    script = f'x() {{ "$PROGRAM" "$@"; }}; {command}'
    environment = {**os.environ, "PROGRAM": str(PROGRAM), "XRAY_URL": fake.url}
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv"])
@pytest.mark.parametrize(
    ("stream", "code", "words"),
    [(">&-", ExitCode.USAGE, "standard output is closed"), (">/dev/full", ExitCode.SYSTEM_REFUSED, FULL)],
)
def test_answers_that_cannot_be_printed_are_no_success(
    fake: FakeServer, tmp_path: Path, form: str, stream: str, code: ExitCode, words: str
) -> None:
    done = shell(f"x classify {save(tmp_path / 'a.png', 9)} --format {form} {stream}", fake)
    assert done.returncode == code
    assert done.stdout == ""
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["info", "health", "doctor", "--help", "watch {folder} --once --every 0.05"])
def test_every_command_says_that_standard_output_is_full(fake: FakeServer, tmp_path: Path, command: str) -> None:
    save(tmp_path / "a.png", 9)
    done = shell(f"x {command.format(folder=tmp_path)} >/dev/full", fake)
    assert done.returncode == ExitCode.SYSTEM_REFUSED
    assert done.stderr.splitlines()[-1] == f"xray-client: the system refused to go on: {FULL}"


def test_a_closed_stream_that_is_not_needed_changes_nothing(fake: FakeServer, tmp_path: Path) -> None:
    file = save(tmp_path / "a.png", 9)
    assert shell("x health >&- 2>&- <&-", fake).returncode == ExitCode.OK
    done = shell(f"x classify {file} --format jsonl 2>&- <&-", fake)
    assert (done.returncode, done.stdout.count("\n")) == (ExitCode.OK, 1)
    done = shell(f"x watch {tmp_path} --once --every 0.05 >&-", fake)
    assert done.returncode == ExitCode.OK
    assert (tmp_path / ".xray-client.jsonl").read_text().count("\n") == 1
    done = shell("x classify - <&-", fake)
    assert (done.returncode, "Traceback" in done.stderr) == (ExitCode.USAGE, False)


def test_ctrl_c_while_python_imports_ends_without_a_trace() -> None:
    code = """
import os, signal, sys, xray_program
class Interrupts:
    def find_spec(self, name, *_):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
sys.argv[0] = "/usr/bin/xray-client"
xray_program.client()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (ExitCode.INTERRUPTED, "", "xray-client: interrupted\n")


def test_a_file_that_the_system_refuses_is_named_and_a_bug_keeps_its_trace() -> None:
    code = """
import sys, types, xray_program
sys.argv[0] = "xray-client"
def main():
    raise {error}
sys.modules["xray_client.cli.main"] = types.SimpleNamespace(main=main)
xray_program.client()
"""
    outputs = []
    for error in ("PermissionError(13, 'Permission denied', '/etc/x')", "OSError('a bug')"):
        command = [sys.executable, "-c", code.format(error=error)]
        outputs.append(subprocess.run(command, capture_output=True, text=True, check=False))
    refused, bug = outputs
    assert refused.returncode == ExitCode.SYSTEM_REFUSED
    assert refused.stderr == "xray-client: the system refused to go on: /etc/x: Permission denied\n"
    assert (bug.returncode, "Traceback" in bug.stderr) == (1, True)


def test_ctrl_c_that_a_shell_ignores_for_us_is_ignored(fake: FakeServer) -> None:
    assert shell("trap '' INT; x health & sleep 0.1; kill -INT $!; wait $!", fake).returncode == ExitCode.OK

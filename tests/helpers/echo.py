"""Models of a few lines of Python for a real tritonserver, and what it leaves on this machine.

Processes are looked for in /proc, so that nothing here trusts the code under test to know what it left behind.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from tests.helpers.gates import wait_until
from xray_build.artefacts import MODEL_CODE_FILE
from xray_build.triton.server import TritonServer

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

# Never becomes ready.
SLEEPS = """
import time

class TritonPythonModel:
    def initialize(self, args):
        time.sleep(600)
"""


def write_model(repository: Path, name: str, code: str | None, *, version: str = "1", config: str = CONFIG) -> Path:
    """Write a version of a model with `configs/embedded.pbtxt` and no `config.pbtxt`; returns the version's folder."""
    folder = repository / name / version
    folder.mkdir(parents=True)
    (repository / name / "configs").mkdir(exist_ok=True)
    (repository / name / "configs" / "embedded.pbtxt").write_text(config)
    if code is not None:
        (folder / MODEL_CODE_FILE).write_text(code)
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


def any_port(repository: Path, **options: Any) -> TritonServer:
    return TritonServer(repository, **{"port": 0, "metrics_port": 0, **options})

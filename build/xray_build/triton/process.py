"""NVIDIA's tritonserver from the nvidia-pytriton wheel: its parts, its environment, its process.

The wheel's program wants to be driven by the wheel's own Python package. Run by itself it needs three things: a backend
directory with the stub of the running Python beside the Python backend, its libraries on the `LD_LIBRARY_PATH` of the
child alone, and numpy 1. It serves laptops and tests: release 2.51 has published vulnerabilities, so it listens on
127.0.0.1 and nowhere else.
"""

from __future__ import annotations

import ctypes.util
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from xray_client import XrayError, contract

HOST = "127.0.0.1"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SHARED_MEMORY = Path("/dev/shm")


class ServerStartError(XrayError):
    """The local server did not become ready; the message says why, `remedy` what to do next."""


_PLAIN = re.compile(r"[A-Za-z0-9_./+=@%:,~-]+")


@dataclass(frozen=True)
class TritonWheel:
    """Paths of the parts of an installed nvidia-pytriton."""

    program: Path
    python_backend: Path
    stub: Path
    libraries: Path

    @staticmethod
    def find() -> TritonWheel:
        """Locate the wheel without importing it.

        Raises:
            ServerStartError: It is not installed, is incomplete, has no stub for this Python, or numpy is not 1.x.
        """
        install = 'pip install "medclip-triton[server]"'
        spec = find_spec("pytriton")
        if spec is None or not spec.submodule_search_locations:
            raise ServerStartError(
                "NVIDIA's tritonserver is not installed in this Python", remedy=f"{install}, on Linux x86-64"
            )
        package = Path(next(iter(spec.submodule_search_locations)))
        parts = package / "tritonserver"
        wheel = TritonWheel(
            program=parts / "bin" / "tritonserver",
            python_backend=parts / "backends" / "python",
            stub=parts / "python_backend_stubs" / PYTHON / "triton_python_backend_stub",
            libraries=package.parent / "nvidia_pytriton.libs",
        )
        for part in (wheel.program, wheel.python_backend, wheel.libraries):
            if not part.exists():
                raise ServerStartError(f"the nvidia-pytriton wheel lacks {part}", remedy=f"{install} --force-reinstall")
        if not os.access(wheel.program, os.X_OK):
            raise ServerStartError(f"{wheel.program} may not be executed", remedy=f"chmod +x {wheel.program}")
        if not wheel.stub.exists():
            stubs = sorted((path.name for path in wheel.stub.parents[1].iterdir()), key=lambda v: int(v.split(".")[1]))
            raise ServerStartError(
                f"tritonserver's Python backend has no stub for Python {PYTHON}",
                remedy=f"use one of {', '.join(stubs)}",
            )
        _check_numpy()
        return wheel

    def lay_out_backends(self, directory: Path) -> None:
        """Fill `directory` as `--backend-directory`: the Python backend with this Python's stub beside it, as links."""
        backend = directory / "python"
        backend.mkdir()
        for part in (*self.python_backend.glob("*.so"), *self.python_backend.glob("*.py"), self.stub):
            (backend / part.name).symlink_to(part)

    def environment(self, directory: Path) -> dict[str, str]:
        """Environment for the child alone: these libraries must not reach other programs.

        Args:
            directory: Folder for links to this Python's packages, if a stub cannot take their own paths.

        Raises:
            ServerStartError: This Python has no shared libpython, which the stub needs.
        """
        prefix = _plain_prefix(directory)
        libraries = [str(self.libraries), *_libpython_directory(), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
            # The stub takes its packages from the interpreter that comes first here.
            "PATH": os.pathsep.join([str(prefix / "bin"), os.environ.get("PATH", os.defpath)]),
        }


def plain_path(path: Path, link: Path) -> Path:
    """Return a path that tritonserver can hand to its stubs: itself, or else a link to it, which is made.

    The Python backend puts it into a command line, unquoted: at a space the stub dies or waits for ever.

    Raises:
        ServerStartError: The link itself would have a path of that kind.
    """
    if _PLAIN.fullmatch(str(path)):
        return path
    if not _PLAIN.fullmatch(str(link)):
        raise ServerStartError(
            f"tritonserver's Python backend takes neither {path} nor {link.parent}: plain letters only",
            remedy="set TMPDIR to a folder of plain letters",
        )
    link.symlink_to(path)
    return link


def _plain_prefix(directory: Path) -> Path:
    """Return this virtual environment, or one that links to its packages where a path has letters outside ASCII.

    Python inside a stub is isolated from the locale and takes paths for ASCII; a .pth file with others ends it.
    """
    library = Path(sysconfig.get_path("platstdlib"))
    own = {sysconfig.get_path("stdlib"), str(library), str(library / "lib-dynload")}  # found without us
    paths = [path for path in sys.path if path and path not in own and Path(path).is_dir()]
    if all(_PLAIN.fullmatch(path) for path in (sys.prefix, *paths)):
        return Path(sys.prefix)
    prefix = directory / "prefix"
    packages = prefix / "lib" / f"python{PYTHON}" / "site-packages"
    packages.mkdir(parents=True)
    links = [plain_path(Path(path), packages.parent / f"paths-{number}") for number, path in enumerate(paths)]
    (packages / "links.pth").write_text("".join(f"{link}\n" for link in links))
    (prefix / "bin").mkdir()
    (prefix / "bin" / "python3").symlink_to(sys.executable)
    home = Path(sys.base_prefix) / "bin"
    (prefix / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    return prefix


def find_models(repository: Path, wanted: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Choose the models to load: the `wanted`, else all that have a version; also return the others.

    Raises:
        ServerStartError: There is no such repository or model, or nothing in it has a version.
    """
    publish = "`python -m finetune.run --data DIR` publishes one"
    if not repository.is_dir():
        raise ServerStartError(f"there is no model repository {repository}", remedy=publish)
    found = {model.name: _has_version(model) for model in sorted(repository.iterdir()) if _is_model(model)}
    for name in wanted:
        if name not in found:
            has = ", ".join(found) or "no models"
            raise ServerStartError(f"there is no model {name!r} in {repository}", remedy=f"it has {has}")
        if not found[name]:
            raise ServerStartError(f"model {name!r} in {repository} has no version to serve", remedy=publish)
    if not found.get(contract.MODEL_NAME, True):
        # The ensemble needs it, and comes with every clone.
        ensemble = {contract.DECODE_MODEL, contract.METRICS_MODEL, contract.ENSEMBLE_MODEL}
        found.update(dict.fromkeys(ensemble & found.keys(), False))
    if wanted:
        return list(dict.fromkeys(wanted)), []
    if not any(found.values()):
        raise ServerStartError(f"no model in {repository} has a version to serve", remedy=publish)
    return [name for name in found if found[name]], [name for name in found if not found[name]]


def _is_model(folder: Path) -> bool:
    """True if a folder of the repository is a model; a publisher's own folders begin with a dot."""
    if folder.name.startswith(".") or not folder.is_dir():
        return False
    return (folder / "config.pbtxt").exists() or (folder / "configs").is_dir() or _has_version(folder)


def _has_version(model: Path) -> bool:
    """True if the model has a version: a folder named by a number without a leading zero."""
    return any(re.fullmatch(r"[1-9][0-9]*", path.name) and path.is_dir() for path in model.iterdir())


def _check_numpy() -> None:
    """Refuse numpy 2, with which the stub dies or, worse, answers with empty outputs."""
    try:
        version = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        version = "none"
    if version.split(".")[0] != "1":
        raise ServerStartError(
            f"tritonserver's Python backend needs numpy 1, and numpy {version} is installed",
            remedy='pip install "numpy>=1.26,<2"',
        )


def _libpython_directory() -> list[str]:
    """Directory of libpython; empty if the system's own search path has it."""
    name = f"libpython{PYTHON}.so.1.0"
    for directory in (sysconfig.get_config_var("LIBDIR"), str(Path(sys.base_prefix) / "lib")):
        if directory and (Path(directory) / name).exists():
            return [directory]
    if ctypes.util.find_library(f"python{PYTHON}"):
        return []
    raise ServerStartError(
        f"this Python comes without {name}, which tritonserver's Python backend needs",
        remedy=f"apt install libpython{PYTHON}, or a Python built with --enable-shared",
    )


# Asks the kernel to kill this process with its parent and then becomes tritonserver: the setting survives the exec. It
# is a program of its own, because Python code between fork and exec can deadlock in a parent with threads. SIGKILL,
# because no process is left to supervise an orderly end, and tritonserver waits for a stuck model without end. Its
# stubs look for their parent and follow within 0.3 s, or when a library call that holds Python's lock returns.
_TIED_TO_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("error: the parent is gone")
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as err:
    sys.exit(f"error: cannot run {sys.argv[2]}: {err.strerror}")
"""


class Child:
    """A running tritonserver that cannot outlive this process, with the stubs that it starts.

    The kernel ties a child to the *thread* that forked it, not to the process. So one thread both starts tritonserver
    and waits for it, whichever thread makes the `Child`. When tritonserver ends, for whatever reason, that thread kills
    the rest of its process group.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: BinaryIO) -> None:
        self.pid = 0
        self.returncode: int | None = None
        self._ended = threading.Event()
        self._signals = threading.Lock()
        self._failure: OSError | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(command, environment, log, started), daemon=True)
        self._thread.start()
        started.wait()
        if self._failure is not None:
            raise ServerStartError(f"cannot run {sys.executable}: {self._failure.strerror}") from self._failure

    def _run(
        self, command: Sequence[str], environment: Mapping[str, str], log: BinaryIO, started: threading.Event
    ) -> None:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _TIED_TO_PARENT, str(os.getpid()), *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C must reach us alone, and the group is the stubs' too
            )
            self.pid = process.pid
        except OSError as err:
            self._failure = err
            return
        finally:
            started.set()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet: the number cannot be anyone else's
        with self._signals:
            os.killpg(process.pid, signal.SIGKILL)
            self.returncode = process.wait()
            self._ended.set()

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    def terminate(self) -> None:
        """Ask tritonserver to finish the requests in flight and to end."""
        with self._signals:
            if self.running:
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End tritonserver and its stubs at once."""
        with self._signals:
            if self.running:
                os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end, at most `timeout` seconds; the exit code (negative: a signal), or None if it still runs."""
        if self._ended.wait(timeout):
            self._thread.join()
        return self.returncode


def remove_shared_memory(prefix: str) -> None:
    """Remove the shared memory that a killed Python backend has left in /dev/shm."""
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)

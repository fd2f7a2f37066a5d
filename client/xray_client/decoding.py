"""Decoding in processes of their own, which can be ended: a codec that crashes, hangs or grows costs its image alone.

A thread cannot be ended: one that decodes on after its caller's deadline holds the whole picture in memory. And a codec
that crashes in a thread takes the program with it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import Empty, LifoQueue

import numpy as np
import numpy.typing as npt

from ._exceptions import ImageError, ImageTooLarge, ImageUnavailable, ImageUnreadable
from ._imaging.preprocessing import Preprocessing
from ._imaging.reader import load_radiograph

Prepared = npt.NDArray[np.uint8]

# Of processor time, not of the clock, which a busy machine stretches; the largest picture that is read takes 4.
CPU_SECONDS = 6
# Address space. 64 megapixels of 16 bits take a quarter of it.
MEMORY_BYTES = 4 * 2**30
_MOST_PROCESSES = 4
# Ends by which a codec says that a file was too much for it. Any other end says nothing of the file: the system was out
# of memory, an operator ended the process, or it did not come up.
_SIGNALS = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")
_CRASHES = frozenset(-getattr(signal, name) for name in _SIGNALS if hasattr(signal, name))

_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from xray_client.decoding import serve
serve(int(sys.argv[1]))
"""


class Decoder:
    """A process that decodes one image at a time, replaced when it crashes or does not end.

    It ends with the process that started it, however that one ends: its pipe breaks, and no image is given more
    processor time than 6 s. It has 4 GiB of address space.

    Args:
        python: Interpreter that runs it; None = the one that runs here.

    Raises:
        ImageUnavailable: The system starts no process.
    """

    def __init__(self, python: str | None = None) -> None:
        self._python = python or sys.executable
        self._start()

    def decode(self, data: bytes, preprocessing: Preprocessing, seconds: float) -> Prepared:
        """Read and prepare one image, as `load_radiograph` does.

        Args:
            data: Undecoded bytes.
            preprocessing: Preprocessing of the model that will see it.
            seconds: Time that it may take; after that the process is ended.

        Returns:
            uint8 (1, size, size).

        Raises:
            ImageError: The reader's own; or the codec crashed, or took more than 6 s of processor time.
            ImageUnavailable: The process was ended twice from outside, or does not come up.
            TimeoutError: It did not end in time.
        """
        until, ended = time.monotonic() + seconds, 0
        for _ in range(2):  # a process may have been ended from outside; a codec that crashes does so again
            if self._connection.closed:
                self._start()
            try:
                self._connection.send((data, preprocessing))
                in_time = self._connection.poll(max(0.0, until - time.monotonic()))
                answer = self._connection.recv() if in_time else None
            except (EOFError, OSError):  # the process has ended, perhaps while it wrote its answer
                ended = self.end()
                if ended == -signal.SIGXCPU:
                    raise ImageUnreadable("its codec did not end in time", remedy="export it again, as PNG") from None
                continue
            if isinstance(answer, ImageError):
                raise answer
            if answer is None:
                self.end()
                raise TimeoutError
            return np.asarray(answer, np.uint8)
        if ended in _CRASHES:
            raise ImageUnreadable("its codec crashed", remedy="export it again, as PNG")
        raise ImageUnavailable(f"the process that decodes was ended ({ended})", remedy="try again later")

    def end(self) -> int:
        """End the process, which may never end by itself.

        Returns:
            Its exit code as `subprocess` gives it; that of its own end if it had ended.
        """
        self._process.kill()
        self._connection.close()
        return self._process.wait()

    def _start(self) -> None:
        self._connection, end = Pipe()
        paths = json.dumps([str(path) for path in sys.path])
        with end:
            try:
                self._process = subprocess.Popen(
                    # -I: no module of the folder that the caller happens to be in.
                    [self._python, "-I", "-c", _PROGRAM, str(end.fileno()), paths],
                    pass_fds=[end.fileno()],
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # each thread of it takes address space
                    # A library's complaint may quote the patient.
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
            except OSError as err:
                self._connection.close()
                raise ImageUnavailable(
                    f"no process to decode it in: {err.strerror}", remedy="try again later, with fewer at a time"
                ) from err


class Decoders:
    """Processes that decode, one image each; more callers than processes wait.

    Args:
        limit: Maximum number of processes.
        python: Interpreter that runs them; None = the one that runs here.
        start: Start all of them now; else each when no other is idle.
    """

    def __init__(self, limit: int, *, python: str | None = None, start: bool = False) -> None:
        self._python = python
        self._idle: LifoQueue[Decoder | None] = LifoQueue()  # None = not started yet
        for _ in range(limit):
            self._idle.put(Decoder(python) if start else None)

    def decode(self, data: bytes, preprocessing: Preprocessing, seconds: float) -> Prepared:
        """Read and prepare one image in a process; arguments, result and errors are those of `Decoder.decode`."""
        until = time.monotonic() + seconds
        try:
            decoder = self._idle.get(timeout=max(0.0, seconds))
        except Empty:
            raise TimeoutError from None
        try:
            decoder = decoder or Decoder(self._python)
            return decoder.decode(data, preprocessing, until - time.monotonic())
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """End the processes that are idle."""
        with suppress(Empty):
            while True:
                decoder = self._idle.get_nowait()
                if decoder is not None:
                    decoder.end()


def processes_start_here() -> bool:
    """Tell if this program can start a process that decodes: not on Windows, and not frozen into one file."""
    return os.name == "posix" and bool(sys.executable) and not getattr(sys, "frozen", False)


_shared: Decoders | None = None
_sharing = threading.Lock()


def shared_decoders() -> Decoders:
    """Return the processes of this program, at most 4, which all of its clients share; they end with it."""
    global _shared
    with _sharing:
        if _shared is None:
            _shared = Decoders(min(os.cpu_count() or 1, _MOST_PROCESSES))
            atexit.register(_shared.close)
        return _shared


def _forget_after_fork() -> None:
    """Leave the processes to the parent, whose they are."""
    global _shared, _sharing
    if _shared is not None:
        atexit.unregister(_shared.close)
    _shared, _sharing = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def serve(descriptor: int) -> None:
    """Decode what comes through a pipe until it breaks; the program of a `Decoder`.

    Args:
        descriptor: File descriptor of this end of the pipe.
    """
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that waits here
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    connection = Connection(descriptor)
    with suppress(EOFError, OSError):
        while True:
            data, preprocessing = connection.recv()
            used = resource.getrusage(resource.RUSAGE_SELF)
            _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS)
            connection.send(_prepared(data, preprocessing))


def _prepared(data: bytes, preprocessing: Preprocessing) -> Prepared | ImageError:
    try:
        return load_radiograph(data, preprocessing)
    except ImageError as err:
        return err
    except MemoryError:
        return ImageTooLarge("more than there is memory for", remedy="export it at a smaller size")
    except Exception as err:  # a codec's own, which the reader does not know
        return ImageUnreadable(f"cannot be decoded ({type(err).__name__})", remedy="export it again, as PNG")


def _limit(kind: int, most: int) -> None:
    """Set a limit of this process, within what it may set."""
    import resource

    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))

"""The local server against NVIDIA's real tritonserver."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.helpers.echo import (
    CONFIG,
    ECHO,
    LOOPBACK,
    SLEEPS,
    STUCK,
    any_port,
    ask,
    ask_in_background,
    listening,
    port_of,
    processes,
    traces,
    write_model,
)
from tests.helpers.gates import wait_until
from xray_build.triton import ports, server
from xray_build.triton import process as _tritonserver
from xray_build.triton.process import TritonWheel
from xray_build.triton.server import ServerStartError, TritonServer

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


@pytest.mark.parametrize("name", ["My Projects", "J\u00fcrgen", "a;b'\"$(c)"])
def test_a_repository_below_any_path_is_served(tmp_path: Path, name: str) -> None:
    write_model(tmp_path / name, "echo", ECHO)
    with any_port(tmp_path / name) as started:
        assert ask(started.url, 3) == 3
        assert started.repository == tmp_path / name


def test_packages_below_any_path_are_served_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub's Python takes every path for ASCII; the links to the packages are found by its own site module."""
    checkout = tmp_path / "Pr\u00fcf 1"
    checkout.mkdir()
    (checkout / "only_here.py").write_text("OFFSET = 40\n")
    monkeypatch.syspath_prepend(checkout)
    write_model(tmp_path / "repository", "echo", ECHO.replace("OFFSET = 0", "from only_here import OFFSET"))
    with any_port(tmp_path / "repository") as started:
        assert ask(started.url, 2) == 42


def test_where_no_plain_path_can_be_made_that_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "My Projects", "echo", ECHO)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "My Projects"))
    with pytest.raises(ServerStartError, match="set TMPDIR to a folder of plain letters"):
        any_port(tmp_path / "My Projects").start()


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


def test_it_outlives_the_thread_that_started_it(echo_repository: Path) -> None:
    started: list[TritonServer] = []
    thread = threading.Thread(target=lambda: started.append(any_port(echo_repository).start()))
    thread.start()
    thread.join()
    wait_until(lambda: not Path(f"/proc/self/task/{thread.native_id}").exists())
    assert ask(started[0].url, 1) == 1
    started[0].kill()


def test_nothing_is_left_after_it_has_stopped(echo_repository: Path) -> None:
    with any_port(echo_repository) as started:
        left = traces(started.pid)
        assert sorted(processes(echo_repository).values()) == ["triton_python_backend_stub", "tritonserver"]
        assert len(left) == 2
    assert processes(echo_repository) == {}
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
    wait_until(lambda: processes(tmp_path / "repository") == {})
    assert not any(path.exists() for path in left)


# Ports


def test_where_the_default_port_is_taken_it_takes_a_free_one_and_says_so(
    echo_repository: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(server.DEFAULT_PORTS, "port", taken_port)
    started = TritonServer(echo_repository, metrics_port=0).start()
    assert ask(started.url, 1) == 1
    assert started.notices == [f"port {taken_port} is in use; took {port_of(started.url)} instead"]
    started.kill()


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(echo_repository: Path, taken_port: int) -> None:
    with pytest.raises(ServerStartError, match=f"^port {taken_port} is in use .choose another with --port or leave"):
        any_port(echo_repository, port=taken_port).start()
    with pytest.raises(ServerStartError, match=f"^port {taken_port} is in use .choose another with --metrics-port or"):
        any_port(echo_repository, metrics_port=taken_port).start()


def lose_ports(monkeypatch: pytest.MonkeyPatch, *taken: int) -> None:
    """Make the first probes find these ports free, as if somebody had taken them right after."""
    really_hold, lost = ports._hold_port, list(taken)
    monkeypatch.setattr(ports, "_hold_port", lambda held, port: lost.pop(0) if lost else really_hold(held, port))


@pytest.mark.parametrize("which", ["port", "metrics_port"])
def test_a_port_lost_after_it_was_found_free_is_replaced_by_another(
    echo_repository: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        other = free.getsockname()[1]
    lose_ports(monkeypatch, *((taken_port, other) if which == "port" else (other, taken_port)))
    started = any_port(echo_repository).start()
    assert taken_port not in (port_of(started.url), port_of(started.metrics_url))
    assert ask(started.url, 1) == 1
    started.kill()
    wait_until(lambda: processes(echo_repository) == {})


def test_a_port_that_was_asked_for_and_is_lost_after_it_was_found_free_is_an_error(
    echo_repository: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_ports(monkeypatch, taken_port)
    with pytest.raises(ServerStartError, match=f"^port {taken_port} is in use"):
        any_port(echo_repository, port=taken_port).start()


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


def test_a_model_that_was_asked_for_must_be_there_with_a_version(echo_repository: Path) -> None:
    write_model(echo_repository, "unpublished", None, version=".staging-1")
    with pytest.raises(ServerStartError, match=r"there is no model 'medclip' .*it has echo, unpublished"):
        TritonServer(echo_repository, models=["medclip"]).start()
    with pytest.raises(ServerStartError, match=r"model 'unpublished' in .* has no version"):
        TritonServer(echo_repository, models=["unpublished"]).start()


def test_only_the_models_asked_for_are_loaded(echo_repository: Path) -> None:
    write_model(echo_repository, "broken", "import no_such_module")
    started = any_port(echo_repository, models=["echo"]).start()
    assert set(started.models) == {"echo"}
    started.kill()


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
    wait_until(lambda: processes(tmp_path) == {})


def test_a_start_that_takes_too_long_is_given_up(echo_repository: Path) -> None:
    write_model(echo_repository, "sleeps", SLEEPS)
    with pytest.raises(ServerStartError, match=r"not ready within 1 s.*--timeout"):
        any_port(echo_repository, timeout=1).start()
    wait_until(lambda: processes(echo_repository) == {})


# Installations that cannot serve; the faults are made up


def test_without_nvidias_wheel_the_error_names_the_extra(
    echo_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tritonserver, "find_spec", lambda name: None)
    with pytest.raises(ServerStartError, match=r'pip install "medclip-triton\[server\]"'):
        TritonServer(echo_repository).start()


def test_numpy_2_is_refused_before_the_start(echo_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.1.0")
    with pytest.raises(ServerStartError, match=r'needs numpy 1, and numpy 2.1.0 is installed .*pip install "numpy>='):
        TritonServer(echo_repository).start()


def test_a_python_that_the_wheel_has_no_stub_for_is_refused(
    echo_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tritonserver, "PYTHON", "3.99")
    with pytest.raises(ServerStartError, match=r"no stub for Python 3.99 .use one of 3.8, .*3.12"):
        TritonServer(echo_repository).start()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("#!/bin/sh\necho needs GLIBC_2.99\nexit 1", "needs GLIBC_2.99"),
        ("#!/bin/sh\nexit 3", "tritonserver ended without an error message"),
        ("no program at all", "cannot run .*: Exec format error"),
    ],
)
def test_a_tritonserver_that_does_not_run_is_an_error_with_its_last_words(
    echo_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    fake = tmp_path / "tritonserver"
    fake.write_text(script)
    fake.chmod(0o755)
    broken = dataclasses.replace(TritonWheel.find(), program=fake)
    monkeypatch.setattr(TritonWheel, "find", staticmethod(lambda: broken))
    with pytest.raises(ServerStartError, match=reason):
        any_port(echo_repository).start()

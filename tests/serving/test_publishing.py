"""Publishing into a server that runs, on a real Triton: what is live stays live, whatever is offered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as tritongrpc
from click.testing import CliRunner
from google.protobuf import json_format
from tritonclient.utils import InferenceServerException

from tests.helpers.gates import wait_until
from tests.helpers.small_graph import publish_small
from xray_build.artefacts import MODEL_CODE_FILE
from xray_build.errors import BuildError
from xray_build.repository import publish as publishing
from xray_build.repository.card import card_of
from xray_build.repository.cli import commands
from xray_build.repository.configurations import served
from xray_build.repository.ensemble import ENSEMBLE_MODELS
from xray_build.repository.known_answers import KnownAnswers
from xray_build.repository.model_config import ENGINES, ServingConfig, model_config
from xray_build.repository.pbtxt import parse_config
from xray_build.repository.publish import rollback, versions
from xray_build.repository.remote import LiveServer
from xray_build.triton.server import TritonServer
from xray_client import XrayClient, contract
from xray_client.cli.main import main as command_line

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = next(engine for engine in ENGINES if engine.name == "embedded")


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A repository whose version 1 is served, and the server's address."""
    repository = tmp_path / "model_repository"
    publish_small(repository)
    with TritonServer(repository, port=0, metrics_port=0) as server:
        yield repository, server.url
        server.kill()  # nobody waits for an answer


def _answering(url: str) -> str:
    """The version that answers."""
    with XrayClient(url) as client:
        return client.classify(np.zeros((1, 224, 224), np.uint8)).model_version


def _models(url: str) -> set[tuple[str, str]]:
    """Models that the server has loaded, with their versions, besides the two before `medclip`."""
    with tritongrpc.InferenceServerClient(url) as client:
        index = client.get_model_repository_index().models
        ready = {(model.name, model.version) for model in index if model.state == "READY"}
        return {(name, version) for name, version in ready if name not in ENSEMBLE_MODELS}


# Configurations


def test_the_embedded_configuration_is_loaded_as_it_is_written_and_warmed_up(tmp_path: Path) -> None:
    publish_small(tmp_path / "repository")
    log = tmp_path / "log"
    with TritonServer(tmp_path / "repository", port=0, metrics_port=0, log=log, verbose=True) as server:
        with tritongrpc.InferenceServerClient(server.url) as client:
            config = client.get_model_config(contract.MODEL_NAME).config
        written = parse_config((tmp_path / "repository" / contract.MODEL_NAME / EMBEDDED.file).read_text())
        assert config.dynamic_batching == written.dynamic_batching
        assert config.model_warmup == written.model_warmup
        assert not config.response_cache.enable
    for sample in ("one", "largest"):
        assert f"warmup sample '{sample}'" in log.read_text()


def test_info_shows_the_card_of_the_version_that_is_served(live: tuple[Path, str]) -> None:
    repository, url = live
    about = json.loads((ROOT / "finetune" / "reference" / "config.json").read_text())["about"]
    with XrayClient(url) as client:
        assert client.info().card is None
        publish_small(repository, url=url, about=about)
        told = client.info()
        assert (told.card, told.versions) == (card_of(about), ("2",))
        shown = CliRunner().invoke(command_line, ["info", "--url", url, "--format", "json"])
        assert json.loads(shown.stdout)["card"]["operating_point"] == told.card.operating_point
        assert "Diagnosis" in CliRunner().invoke(command_line, ["info", "--url", url]).stdout
        rollback(repository, url=url)
        assert client.info().card is None


def test_triton_finds_nothing_wrong_with_the_others_but_that_their_backends_are_not_here(
    live: tuple[Path, str],
) -> None:
    _, url = live
    for engine in ENGINES:
        if engine is EMBEDDED:
            continue
        config = json_format.MessageToJson(model_config(engine, ServingConfig()), preserving_proto_field_name=True)
        with tritongrpc.InferenceServerClient(url) as client, pytest.raises(InferenceServerException) as caught:
            client.load_model(contract.MODEL_NAME, config=config)
        assert f"unable to find backend library for backend '{engine.backend}'" in str(caught.value)
        assert _answering(url) == "1", "the live version stays"


# Publishing


def test_a_published_version_answers_when_publish_returns_and_nothing_else_is_left_loaded(live) -> None:
    repository, url = live
    assert publish_small(repository, url=url, temperature=2).version == 2
    assert _answering(url) == "2"
    assert _models(url) == {(contract.MODEL_NAME, "2")}
    assert {path.name for path in repository.iterdir()} == {contract.MODEL_NAME, *ENSEMBLE_MODELS}


def test_the_commands_do_it_too_and_a_rollback_is_one_of_them(live, tmp_path: Path) -> None:
    repository, url = live
    version = repository / contract.MODEL_NAME / "1"
    for name, argument, expected in (
        ("publish", [version], "2"),
        ("rollback", [], "1"),
        ("rollback", ["--to", 2], "2"),
    ):
        command = next(command for command in commands if command.name == name)
        options = [*argument, "--repository", repository, "--url", url]
        result = CliRunner().invoke(command, [str(option) for option in options])
        assert result.exit_code == 0, result.output
        assert "known answers" in result.output
        assert _answering(url) == expected


def test_another_preprocessing_is_refused_and_takes_effect_by_a_restart(live) -> None:
    repository, url = live
    with pytest.raises(BuildError, match=r'"pad".*live version .*"stretch".* \(leave out --url, then restart'):
        publish_small(repository, url=url, geometry="pad")
    assert (_answering(url), versions(repository)) == ("1", [1])
    publish_small(repository, geometry="pad")
    assert _answering(url) == "1", "the live server is left alone"
    publish_small(repository, url=url)
    assert _answering(url) == "3", "a version prepared like the live one still comes without a restart"
    with pytest.raises(BuildError, match=r'"pad".*live version .*"stretch"'):
        rollback(repository, to=2, url=url)
    assert set(served(repository).values()) == {3}
    rollback(repository, to=2)
    with TritonServer(repository, port=0, metrics_port=0) as restarted, XrayClient(restarted.url) as client:
        assert (client.preprocessing.geometry, client.info().versions) == ("pad", ("2",))
        restarted.kill()


def test_the_first_version_is_published_into_a_server_that_has_none(live, tmp_path: Path) -> None:
    repository, url = live
    shutil.rmtree(repository / contract.MODEL_NAME)
    assert publish_small(repository, url=url, temperature=3).version == 1
    assert _answering(url) == "1"


def test_a_server_with_a_configuration_of_its_operators_own_takes_versions_too(tmp_path: Path) -> None:
    publish_small(tmp_path)
    configs = tmp_path / contract.MODEL_NAME / "configs"
    (configs / "mine.pbtxt").write_text((configs / "embedded.pbtxt").read_text())
    with TritonServer(tmp_path, config_name="mine", port=0, metrics_port=0) as server:
        publish_small(tmp_path, url=server.url)
        assert _answering(server.url) == "2"
        server.kill()


RAISES = 'raise RuntimeError("no such instruction")'
LIES = """
import numpy as np
import triton_python_backend_utils as pb_utils
_execute = TritonPythonModel.execute
def execute(self, requests):
    responses = []
    for response in _execute(self, requests):
        tensors = response.output_tensors()
        swapped = {t.name(): t.as_numpy()[:, ::-1].copy() for t in tensors if t.name() == "probability"}
        tensors = [pb_utils.Tensor(t.name(), swapped.get(t.name(), t.as_numpy())) for t in tensors]
        responses.append(pb_utils.InferenceResponse(tensors))
    return responses
"""
WHEN_LIVE = """
_initialize = TritonPythonModel.initialize
def initialize(self, args):
    if args["model_name"] == "medclip":
        {act}
    _initialize(self, args)
TritonPythonModel.initialize = initialize
"""
FAULTS = {
    "it does not load": (RAISES, "cannot load it: .*no such instruction"),
    "it answers wrongly": (LIES + "TritonPythonModel.execute = execute", "answers wrongly: probability"),
    "it does not load as the live model": (WHEN_LIVE.format(act=RAISES), "cannot load it: .*; version 1 still serves"),
    "it answers wrongly as the live model": (
        LIES + WHEN_LIVE.format(act="TritonPythonModel.execute = execute"),
        "answers wrongly: probability .*; version 1 still serves",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_of_a_broken_version_the_error_says_why_and_the_old_one_stays(
    live, fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The fault is made in the model's code; the server and the publisher are the real ones."""
    repository, url = live
    code, says = FAULTS[fault]
    model = tmp_path / MODEL_CODE_FILE
    model.write_text(publishing._EMBEDDED_MODEL.read_text() + code)
    texts = {engine.file: (repository / contract.MODEL_NAME / engine.file).read_text() for engine in ENGINES}
    with monkeypatch.context() as broken:
        broken.setattr(publishing, "_EMBEDDED_MODEL", model)
        with pytest.raises(BuildError, match=says):
            publish_small(repository, url=url, temperature=0.1)
    assert _answering(url) == "1"
    assert _models(url) == {(contract.MODEL_NAME, "1")}
    assert versions(repository) == [1]
    assert set(served(repository).values()) == {1}
    assert {name: (repository / contract.MODEL_NAME / name).read_text() for name in texts} == texts
    assert {path.name for path in repository.rglob(".*")} == {".lock"}
    tried_live = "live" in fault
    assert publish_small(repository, url=url).version == (3 if tried_live else 2), "no number is given twice"


def test_ctrl_c_after_the_server_took_the_version_over_gives_the_old_one_back(live, monkeypatch) -> None:
    """It comes while the new version's answers are awaited."""
    repository, url = live
    check = LiveServer.check

    def interrupted(self: LiveServer, known: KnownAnswers, version: int, **options: str) -> None:
        if version == 2:
            assert _answering(url) == "2"
            raise KeyboardInterrupt
        check(self, known, version, **options)

    monkeypatch.setattr(LiveServer, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish_small(repository, url=url)
    assert _answering(url) == "1"
    assert versions(repository) == [1]


HELD_WHILE_TRIED = """
import time
from pathlib import Path
GATE = Path({gate!r})
_initialize = TritonPythonModel.initialize
def initialize(self, args):
    if args["model_name"].startswith("."):
        (GATE / "tried").touch()
        while not (GATE / "open").exists():
            time.sleep(0.01)
    _initialize(self, args)
TritonPythonModel.initialize = initialize
"""


def test_a_publisher_that_is_killed_while_the_server_tries_its_version_leaves_no_trace_for_long(
    live, tmp_path: Path
) -> None:
    repository, url = live
    held = tmp_path / MODEL_CODE_FILE
    held.write_text(publishing._EMBEDDED_MODEL.read_text() + HELD_WHILE_TRIED.format(gate=str(tmp_path)))
    code = (
        "import sys; from pathlib import Path; from tests.helpers.small_graph import publish_small\n"
        "from xray_build.repository import publish\n"
        "publish._EMBEDDED_MODEL = Path(sys.argv[3]); publish_small(Path(sys.argv[1]), url=sys.argv[2])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    publisher = subprocess.Popen([sys.executable, "-c", code, repository, url, held], env=environment)
    wait_until((tmp_path / "tried").exists)
    publisher.kill()
    publisher.wait()
    (tmp_path / "open").touch()
    assert _answering(url) == "1"
    assert versions(repository) == [1]
    assert publish_small(repository, url=url).version == 2
    assert _models(url) == {(contract.MODEL_NAME, "2")}
    assert {path.name for path in repository.rglob(".*")} == {".lock"}


def test_a_rollback_to_a_version_that_does_not_load_any_more_keeps_what_is_live(live, monkeypatch) -> None:
    repository, url = live
    publish_small(repository, url=url)
    model = repository / contract.MODEL_NAME / "1" / MODEL_CODE_FILE
    monkeypatch.setattr(publishing, "_require_unchanged", lambda folder: None)  # it changes after it was checked
    model.write_text(model.read_text() + RAISES)
    with pytest.raises(BuildError, match=r"no such instruction.*; version 2 still serves"):
        rollback(repository, url=url)
    assert _answering(url) == "2"
    assert set(served(repository).values()) == {2}


def test_a_server_of_another_repository_is_found_out(live, tmp_path: Path) -> None:
    _, url = live
    publish_small(tmp_path / "other")
    with pytest.raises(BuildError, match="does this server read the repository"):
        publish_small(tmp_path / "other", url=url)
    assert versions(tmp_path / "other") == [1]
    assert _answering(url) == "1"


# Under load

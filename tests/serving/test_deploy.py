"""What runs in production: docker-compose.yml and docs/deploy, by their schemas, by parsing, and on a real Triton."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as tritongrpc
import yaml
from click.testing import CliRunner, Result
from tritonclient.utils import InferenceServerException

from tests.helpers.deployed import DEPLOY, KEY, ROOT, SECRETS, TLS_FILES, TRITONS, Deployed, Secured, flags, healthy
from tests.helpers.prometheus import program, rules
from tests.helpers.radiographs import grey
from tests.helpers.small_graph import publish_small
from xray_build.cli import main as build
from xray_build.errors import BuildError
from xray_build.repository.ensemble import ENSEMBLE_MODELS
from xray_build.repository.remote import ADMIN_HEADER, ADMIN_KEY
from xray_client import TLS, XrayClient, contract


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return compose["services"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deploy") / "model_repository"
    publish_small(folder)
    return folder


@pytest.fixture(scope="module")
def plain(services: dict[str, Any], repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The server of the profile `gpu`, TLS off, so that no certificate is there."""
    with Deployed(repository, flags(services["triton-gpu"]), tmp_path_factory.mktemp("none")) as server:
        yield server


# The file


def test_it_is_a_compose_file_by_the_schema() -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema carries it: pip install 'medclip-triton[dev]'")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, ROOT / "docker-compose.yml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_container_is_unprivileged_and_read_only_and_limited(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == {*TRITONS, "builder", "prometheus", "grafana"}
    for name, service in services.items():
        user = service["user"].split(":")[0]
        assert int(user) > 0, name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert not {"privileged", "pid", "ipc", "cap_add"} & set(service), name
        assert "docker.sock" not in str(service), name


def test_triton_reads_its_repository_and_its_certificates_and_writes_neither(services: dict[str, Any]) -> None:
    for name in TRITONS:
        assert all(volume.endswith(":ro") for volume in services[name]["volumes"])
        assert services[name]["ulimits"] == {"memlock": -1, "stack": 67108864}
        assert services[name]["shm_size"] == "1g"


def test_only_grpc_leaves_triton_and_nothing_leaves_the_machine_unasked(services: dict[str, Any]) -> None:
    for name in TRITONS:
        assert services[name]["ports"] == ["${BIND:-127.0.0.1}:8001:8001"]
        given = flags(services[name])
        assert given["allow-http"] == given["allow-sagemaker"] == given["allow-vertex-ai"] == ["false"]
    for name in ("prometheus", "grafana"):
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])
    assert services["builder"]["network_mode"] == "none"


def test_models_are_loaded_by_name_and_changing_them_needs_a_key(services: dict[str, Any]) -> None:
    for name in TRITONS:
        given = flags(services[name])
        assert given["model-control-mode"] == ["explicit"]
        assert set(given["load-model"]) == {contract.MODEL_NAME, *ENSEMBLE_MODELS}
        (restricted,) = given["grpc-restricted-protocol"]
        protocols, _, key = restricted.partition(":")
        assert {"model-repository", "shared-memory", "trace", "logging"} == set(protocols.split(","))
        assert key == f"admin-key={KEY}"
        assert "${TRITON_ADMIN_KEY:?" in str(services[name]["command"]), "without a key it does not start"


def test_the_two_profiles_differ_in_the_engine_alone(services: dict[str, Any]) -> None:
    gpu, cpu = (flags(services[name]) for name in TRITONS)
    assert {name: cpu[name] for name in cpu.keys() - gpu.keys()} == {
        "model-config-name": ["onnx"],
        "allow-gpu-metrics": ["false"],
    }
    assert {name: cpu[name] for name in gpu} == gpu
    assert [services[name]["profiles"] for name in TRITONS] == [["gpu"], ["cpu"]]


def test_there_is_one_release_of_nvidias(compose: dict[str, Any], services: dict[str, Any]) -> None:
    tag = compose["x-nvidia"]["TRITON_TAG"]
    year, month = map(int, re.fullmatch(r"(\d\d)\.(\d\d)-py3", tag).groups())
    assert (year, month) >= (26, 7), "earlier ones have known holes: docs/security.md"
    for name in (*TRITONS, "builder"):
        assert services[name]["build"]["args"]["TRITON_TAG"] == tag
        assert services[name]["image"].endswith(f":{tag}")
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)", dockerfile, re.M) == ["nvcr.io/nvidia/tritonserver:${TRITON_TAG}", "serving"]
    assert not re.search(r"\d\d\.\d\d-py3", dockerfile)


def test_what_the_file_mounts_from_the_project_is_there(services: dict[str, Any]) -> None:
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith(("./docs", "./model_repository")):
                assert (ROOT / source).exists(), source


def test_the_images_are_given_the_code_and_nothing_else_of_the_folder() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M)
    sources = {source for line in copied for source in line.split()}
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == sources
    assert all((ROOT / source).exists() for source in sources)


# The flags, on a real server


def test_every_flag_is_one_that_tritonserver_knows(plain: Deployed) -> None:
    assert set(plain._ready_models()) == {contract.MODEL_NAME, *ENSEMBLE_MODELS}
    command = Path(f"/proc/{plain.pid}/cmdline").read_text()
    for flag in plain._wanted_flags:
        assert f"--{flag}" in command, flag


def test_a_caller_without_the_key_may_ask_and_may_not_load(plain: Deployed) -> None:
    with tritongrpc.InferenceServerClient(plain.url) as client:
        assert client.is_model_ready(contract.ENSEMBLE_MODEL)
        assert client.get_model_config(contract.MODEL_NAME).config.name == contract.MODEL_NAME
        for forbidden in (
            lambda: client.load_model(contract.MODEL_NAME),
            lambda: client.unload_model(contract.MODEL_NAME),
            client.get_model_repository_index,
            client.get_system_shared_memory_status,
            client.get_log_settings,
        ):
            with pytest.raises(InferenceServerException, match="This protocol is restricted"):
                forbidden()
        assert client.get_model_repository_index(headers={ADMIN_HEADER: KEY}).models


def test_a_publisher_shows_the_key_and_is_told_where_it_is_missing(
    plain: Deployed, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ADMIN_KEY, raising=False)
    with pytest.raises(BuildError, match=f"restricted.*set {ADMIN_KEY}"):
        publish_small(repository, url=plain.url)
    monkeypatch.setenv(ADMIN_KEY, KEY)
    publish_small(repository, url=plain.url)


def test_the_health_check_says_yes_to_a_server_and_no_to_none(plain: Deployed, tmp_path: Path) -> None:
    assert healthy(plain.url, tmp_path) == 0
    assert healthy("127.0.0.1:9", tmp_path) == 1


@pytest.fixture(scope="module")
def secured(services: dict[str, Any], repository: Path, certificates: Path) -> Iterator[Deployed]:
    """Started as in production with TLS; that it is ready is asked with the certificate."""

    with Secured(repository, flags(services["triton-cpu"], TLS="true"), certificates) as server:
        yield server


def test_with_mutual_tls_only_a_caller_with_a_certificate_is_answered(secured: Deployed, certificates: Path) -> None:
    ca, key, pem = ((certificates / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem"))

    def live(credentials: grpc.ChannelCredentials | None) -> bool:
        url = secured.url.replace("127.0.0.1", "localhost")
        channel = grpc.secure_channel(url, credentials) if credentials else grpc.insecure_channel(url)
        with channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            return call(b"", timeout=10) == b"\x08\x01"

    assert live(grpc.ssl_channel_credentials(ca, key, pem))
    for strangers in (None, grpc.ssl_channel_credentials(ca)):
        with pytest.raises(grpc.RpcError) as caught:
            live(strangers)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert healthy(secured.url, certificates, TLS="true") == 1


def run(command: str, *arguments: str | Path, **environment: str) -> Result:
    """A command of xray-build, with nothing in the environment but this."""
    clean = {name: None for name in os.environ if name.startswith("XRAY_") or name == ADMIN_KEY}
    return CliRunner(env={**clean, **environment}).invoke(build, [command, *map(str, arguments)])


def test_versions_are_published_and_taken_back_over_mutual_tls_with_the_key(
    secured: Deployed, repository: Path, certificates: Path, tmp_path: Path
) -> None:
    """By the options or, all of them, by the environment; the names are those of `xray-client`."""
    publish_small(tmp_path, temperature=0.5)
    version = tmp_path / contract.MODEL_NAME / "1"
    url = secured.url.replace("127.0.0.1", "localhost")
    files = {name: certificates / file for name, file in TLS_FILES.items()}
    tls = TLS(*files.values())

    def answering() -> int:
        with XrayClient(url, tls=tls) as client:
            return int(client.classify(grey(0)).model_version)

    before = answering()
    options = [f"--{name}={file}" for name, file in files.items()]
    done = run("publish", version, "--repository", repository, "--url", url, *options, **SECRETS)
    assert done.exit_code == 0, done.output
    assert "it gives its known answers" in done.output
    assert answering() > before
    environment = {f"XRAY_{name.upper().replace('-', '_')}": str(file) for name, file in files.items()}
    done = run("rollback", "--repository", repository, "--to", before, "--url", url, **SECRETS, **environment)
    assert done.exit_code == 0, done.output
    assert answering() == before


def test_a_publisher_whom_the_server_does_not_let_in_is_told_why_and_changes_nothing(
    secured: Deployed, repository: Path, certificates: Path, tmp_path: Path
) -> None:
    version = repository / contract.MODEL_NAME / "1"
    options = [f"--{name}={certificates / file}" for name, file in TLS_FILES.items()]
    (tmp_path / "none.pem").write_text("no certificate")

    def state() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(repository.rglob("*")) if path.is_file()}

    before = state()
    for url, given, environment, words in (
        (secured.url, [], SECRETS, "check the address and the options --tls"),
        (secured.url, options[:1], SECRETS, "check the address and the options --tls"),
        (secured.url, [f"--tls-ca={tmp_path / 'none.pem'}"], SECRETS, "the TLS ca holds no PEM"),
        (secured.url, options, {}, f"restricted.*set {ADMIN_KEY}"),
        (secured.url, options, {ADMIN_KEY: "wrong"}, f"restricted.*set {ADMIN_KEY}"),
        ("triton.hospital.lan:8001", [], SECRETS, "the admin key would cross the network in the clear"),
        ("triton.hospital.lan:8001", [], {"XRAY_TOKEN": "any"}, "a token would cross the network in the clear"),
        ("127.hospital.lan:8001", [], SECRETS, "the admin key would cross the network in the clear"),
        ("triton", options, SECRETS, "is not host:port"),
        (f"{secured.url},{secured.url}", options, SECRETS, "several servers"),
        (secured.url, [*options, "--token-file=/nowhere"], SECRETS, "the token cannot be read"),
    ):
        done = run("publish", version, "--repository", repository, "--url", url, *given, **environment)
        assert done.exit_code == 1, done.output
        assert re.search(words, " ".join(done.output.split())), done.output
        assert KEY not in done.output
    assert state() == before


def test_tls_may_ask_callers_for_no_certificate_and_never_turns_on_by_halves(services: dict[str, Any]) -> None:
    for name in TRITONS:
        order = list(flags(services[name]))
        assert order.index("grpc-use-ssl-mutual") < order.index("grpc-use-ssl"), "the later one decides"
        relaxed = flags(services[name], TLS="true", MUTUAL_TLS="false")
        assert (relaxed["grpc-use-ssl"], relaxed["grpc-use-ssl-mutual"]) == (["true"], ["false"])
        assert services[name]["environment"]["MUTUAL_TLS"] == "${MUTUAL_TLS:-${TLS:-false}}"


def test_the_script_never_overwrites_an_authority_and_keeps_the_keys_private(certificates: Path) -> None:
    before = (certificates / "ca.pem").read_bytes()
    done = subprocess.run([DEPLOY / "make-test-ca.sh", certificates], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "remove it first" in done.stderr
    assert (certificates / "ca.pem").read_bytes() == before
    assert {path.stat().st_mode & 0o077 for path in certificates.glob("*.key")} == {0}


# Monitoring


def expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "triton.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in rules()] + panels


def test_every_metric_that_is_shown_or_alerted_on_is_one_that_triton_exports(plain: Deployed) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    exported = direct.open(plain.metrics_url, timeout=10).read().decode()
    names = {line.split("{")[0].split()[0] for line in exported.splitlines() if not line.startswith("#")}
    wanted = set().union(*(re.findall(r"\b(?:nv|xray)_\w+", text) for text in expressions())) - set(ENSEMBLE_MODELS)
    assert len(wanted) > 10
    # There is no GPU here to measure.
    assert {name for name in wanted if not name.startswith("nv_gpu_")} <= names


def test_every_alert_is_explained_on_the_operations_page_and_every_recorded_rule_is_used() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for rule in rules():
        if "alert" in rule:
            assert f"`{rule['alert']}`" in page, rule["alert"]
        else:
            assert any(rule["record"] in text for text in expressions()), rule["record"]


def test_promtool_finds_nothing_wrong() -> None:
    done = subprocess.run(
        [program("promtool"), "check", "config", DEPLOY / "prometheus" / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_is_given_its_source_and_its_dashboard(services: dict[str, Any]) -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/medclip.yml").read_text())["providers"]
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "triton.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    folder = provider["options"]["path"]
    assert f"./docs/deploy/grafana/dashboards:{folder}:ro" in services["grafana"]["volumes"]

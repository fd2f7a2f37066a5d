"""docs/deploy/kubernetes: by the schemas of Kubernetes, KEDA and KServe; beside docker-compose.yml; by Triton."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource

from tests.helpers.deployed import DEPLOY, ROOT, SECRETS, Secured, flags, parsed
from tests.helpers.small_graph import publish_small
from xray_client import TLS, XrayClient, contract

FOLDER = DEPLOY / "kubernetes"
SCHEMAS = Path(__file__).parent / "schemas"
OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes; the oldest is the one that README.md names
OTHERS = {"ScaledObject": "keda", "ServingRuntime": "kserve", "InferenceService": "kserve"}
DEFINITIONS = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}

Document = dict[str, Any]


def documents() -> dict[str, Document]:
    """Every object, by file and kind; kustomize's own files are not sent to a cluster."""
    found = {}
    for path in sorted(FOLDER.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] != "Kustomization":
                found[f"{path.parent.name}/{path.stem}: {document['kind']}"] = document
    return found


DOCUMENTS = documents()
DEPLOYMENT = DOCUMENTS["base/triton: Deployment"]
RUNTIME = DOCUMENTS["kserve/triton: ServingRuntime"]
SERVERS = {
    "Deployment": (DEPLOYMENT["spec"]["template"]["spec"], DEPLOYMENT["spec"]["template"]["spec"]["containers"][0]),
    "ServingRuntime": (RUNTIME["spec"], RUNTIME["spec"]["containers"][0]),
}


def check(document: Document, version: str = NEWEST) -> None:
    """Raises `jsonschema.ValidationError`; a field that is not known is one."""
    kubernetes = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate carries the schemas: pip install 'medclip-triton[dev]'"
    )
    if document["kind"] not in OTHERS:
        kubernetes.validate(document, version, strict=True)
        return
    own = json.loads((SCHEMAS / f"{OTHERS[document['kind']]}.json").read_text())
    folder = Path(kubernetes.__file__).parent / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    theirs = json.loads((folder / "_definitions.json").read_text())
    registry: Registry[Any] = Registry().with_resources(
        [(schema["$id"], Resource.from_contents(schema)) for schema in (own, theirs)]
    )
    name = DEFINITIONS.get(document["kind"], document["kind"])
    wanted = {"$schema": own["$schema"], "$ref": f"{own['$id']}#/$defs/{name}"}
    jsonschema.Draft202012Validator(wanted, registry=registry).validate(document)


def replaced(container: Document) -> dict[str, list[str]]:
    """The flags of a container, with what Kubernetes puts in for the secret."""
    return parsed([word.replace("$(TRITON_ADMIN_KEY)", SECRETS["TRITON_ADMIN_KEY"]) for word in container["args"]])


@pytest.fixture(scope="module")
def compose() -> Document:
    content: Document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return content


# The files


def test_they_are_what_the_readme_says() -> None:
    assert {key.split(": ")[1] for key in DOCUMENTS} == {
        "Namespace", "ServiceAccount", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "ScaledObject",
        "ServingRuntime", "InferenceService",
    }  # fmt: skip


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_object_is_one_by_its_schema(name: str, version: str) -> None:
    check(DOCUMENTS[name], version)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("base/triton: Deployment", "spec template spec containers 0 securityContext runAsNonroot", True),
        ("base/triton: Deployment", "spec template spec volumes 0 persistentVolumeClaim readonly", True),
        ("base/triton: Service", "spec clusterIp", "None"),
        ("base/triton: PodDisruptionBudget", "spec maxUnavailable", [1]),
        ("base/triton: NetworkPolicy", "spec egress", {}),
        ("base/autoscale: ScaledObject", "spec minReplicas", 2),
        ("base/autoscale: ScaledObject", "spec triggers 0 metadata threshold", 16),
        ("base/autoscale: ScaledObject", "spec advanced horizontalPodAutoscalerConfig behavior scaleup", {}),
        ("kserve/triton: ServingRuntime", "spec containers 0 arguments", []),
        ("kserve/triton: ServingRuntime", "spec securityContext", {}),
        ("kserve/triton: InferenceService", "spec predictor model storageURI", "pvc://x"),
        ("kserve/triton: InferenceService", "spec predictor autoScaling metrics 0 external target", "16"),
    ],
)
def test_a_slip_of_the_pen_is_found(name: str, path: str, value: object) -> None:
    document: Any = copy.deepcopy(DOCUMENTS[name])
    inner = document
    *steps, last = path.split()
    for step in steps:
        inner = inner[int(step) if step.isdecimal() else step]
    inner[last] = value
    with pytest.raises(jsonschema.ValidationError):
        check(document)


# Beside docker-compose.yml


@pytest.mark.parametrize("kind", SERVERS)
def test_flags_and_image_are_those_of_docker_compose(kind: str, compose: Document) -> None:
    _, container = SERVERS[kind]
    ours, theirs = replaced(container), flags(compose["services"]["triton-gpu"], TLS="true")
    if kind == "ServingRuntime":
        assert ours.pop("model-repository") == ["/mnt/models"], "where KServe mounts the claim"
        del theirs["model-repository"]
    assert ours == theirs
    assert list(ours) == list(theirs), "of --grpc-use-ssl and --grpc-use-ssl-mutual the later one decides"
    assert container["image"] == compose["services"]["triton-gpu"]["image"]
    assert {entry["name"]: entry.get("value") for entry in container["env"]} == {
        "TLS": "true",
        "MUTUAL_TLS": "true",
        "TRITON_ADMIN_KEY": None,
    }


def test_on_processors_the_engine_alone_differs_as_there(compose: Document) -> None:
    (patch,) = yaml.safe_load((FOLDER / "cpu" / "kustomization.yaml").read_text())["patches"]
    changes = yaml.safe_load(patch["patch"])
    added = [change["value"] for change in changes if change["op"] == "add"]
    cpu, gpu = (flags(compose["services"][f"triton-{name}"], TLS="true") for name in ("cpu", "gpu"))
    assert parsed(["tritonserver", *added]) == {name: cpu[name] for name in cpu.keys() - gpu.keys()}
    assert {change["path"].rpartition("/")[2] for change in changes if change["op"] == "remove"} == {"nvidia.com~1gpu"}


@pytest.mark.parametrize("folder", ["base", "cpu"])
def test_kustomize_puts_them_together(folder: str, compose: Document) -> None:
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("kubectl is not installed here")
    done = subprocess.run([kubectl, "kustomize", FOLDER / folder], capture_output=True, text=True, check=True)
    built = {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}
    for document in built.values():
        check(document)
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "medclip-triton"
    (container,) = built["Deployment"]["spec"]["template"]["spec"]["containers"]
    profile = {"base": "triton-gpu", "cpu": "triton-cpu"}[folder]
    assert replaced(container) == flags(compose["services"][profile], TLS="true")
    assert ("nvidia.com/gpu" in str(container["resources"])) == (folder == "base")


@pytest.mark.parametrize("kind", SERVERS)
def test_the_server_has_no_more_rights_than_there(kind: str, compose: Document) -> None:
    pod, container = SERVERS[kind]
    given = {**pod.get("securityContext", {}), **container["securityContext"]}
    there = compose["services"]["triton-gpu"]
    assert f"{given['runAsUser']}:{given['runAsGroup']}" == there["user"]
    assert given["runAsNonRoot"] is True
    assert given["readOnlyRootFilesystem"] is there["read_only"]
    assert given["allowPrivilegeEscalation"] is False
    assert given["capabilities"] == {"drop": there["cap_drop"]}
    assert given["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["resources"]["limits"]["memory"].lower() == f"{there['mem_limit']}i"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp", "/dev/shm"}
    sizes = {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume}
    assert sizes == {"tmp": "256Mi", "shm": "1Gi"}
    (key,) = [entry["valueFrom"] for entry in container["env"] if entry["name"] == "TRITON_ADMIN_KEY"]
    assert "secretKeyRef" in key
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["exec"]["command"] == there["healthcheck"]["test"][1:]


def test_callers_find_every_server_and_reach_its_grpc_alone() -> None:
    service = DOCUMENTS["base/triton: Service"]["spec"]
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert service["clusterIP"] == "None"
    assert [port["port"] for port in service["ports"]] == [8001]
    policy = DOCUMENTS["base/triton: NetworkPolicy"]["spec"]
    assert policy["egress"] == []
    assert [rule["ports"][0]["port"] for rule in policy["ingress"]] == ["grpc", "metrics"]
    budget = DOCUMENTS["base/triton: PodDisruptionBudget"]["spec"]
    spread = DEPLOYMENT["spec"]["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]
    for selector in (
        service["selector"],
        policy["podSelector"]["matchLabels"],
        budget["selector"]["matchLabels"],
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        spread["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    scaled = DOCUMENTS["base/autoscale: ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]
    assert scaled["minReplicaCount"] > budget["maxUnavailable"]


# On a real server


@pytest.fixture(scope="module")
def server(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    repository = tmp_path_factory.mktemp("kubernetes") / "model_repository"
    publish_small(repository)
    with Secured(repository, replaced(SERVERS["Deployment"][1]), certificates) as running:
        yield running
        running.kill()


def test_a_real_triton_takes_every_flag_and_answers_a_caller_with_a_certificate(
    server: Secured, certificates: Path
) -> None:
    command = Path(f"/proc/{server.pid}/cmdline").read_text()
    for flag in replaced(SERVERS["ServingRuntime"][1]):
        assert f"--{flag}" in command, flag
    tls = TLS(*(certificates / name for name in ("ca.pem", "client.pem", "client.key")))
    # As in a cluster: one name, behind which the servers are.
    with XrayClient(f"dns:///{server.url.replace('127.0.0.1', 'localhost')}", tls=tls) as client:
        assert client.health()
        assert client.info().versions == ("1",)


def test_what_it_is_scaled_by_is_exported_by_that_server(server: Secured) -> None:
    import urllib.request

    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    exported = direct.open(server.metrics_url, timeout=10).read().decode()
    queries = [
        DOCUMENTS["base/autoscale: ScaledObject"]["spec"]["triggers"][0]["metadata"]["query"],
        DOCUMENTS["kserve/triton: InferenceService"]["spec"]["predictor"]["autoScaling"]["metrics"][0]["external"][
            "metric"
        ]["query"],
    ]
    assert queries[0] == queries[1]
    (name,) = re.findall(r"\bnv_\w+", queries[0])
    for model in (contract.MODEL_NAME, contract.DECODE_MODEL):
        assert re.search(rf'^{name}\{{model="{model}"', exported, re.MULTILINE)

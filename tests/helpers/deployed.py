"""tritonserver's flags as deployed, and NVIDIA's real server started with them on this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import tritonclient.grpc as tritongrpc
import yaml
from tritonclient.utils import InferenceServerException

from xray_build.repository.remote import ADMIN_HEADER
from xray_build.triton.server import TritonServer

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "deploy"
KEY = "a key of this test"
TRITONS = ("triton-gpu", "triton-cpu")
SECRETS = {"TRITON_ADMIN_KEY": KEY}
TLS_FILES = {"tls-ca": "ca.pem", "tls-cert": "client.pem", "tls-key": "client.key"}


def flags(service: dict[str, Any], **variables: str) -> dict[str, list[str]]:
    """tritonserver's flags of a service, with the variables of the file replaced as Compose does."""

    def value(match: re.Match[str]) -> str:
        given = {**SECRETS, **variables}.get(match["name"])
        return match["default"] or "" if given is None else given

    variable = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^${}]*)|:\?[^}]*)?\}")
    found = parsed(service["command"])
    for texts in found.values():
        for number, text in enumerate(texts):
            while variable.search(text):  # the innermost first
                text = variable.sub(value, text)
            texts[number] = text
    return found


def production_flags(**variables: str) -> dict[str, list[str]]:
    """Those of the profile `cpu`."""
    return flags(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["triton-cpu"], **variables)


def parsed(command: list[str]) -> dict[str, list[str]]:
    """tritonserver's flags, by their names."""
    program, *arguments = command
    assert program == "tritonserver"
    found: dict[str, list[str]] = {}
    for argument in arguments:
        name, _, text = argument.removeprefix("--").partition("=")
        found.setdefault(name, []).append(text)
    return found


class Deployed(TritonServer):
    """A real Triton with the flags of the file; only what cannot be the same here is replaced: paths and ports."""

    def __init__(self, repository: Path, wanted: dict[str, list[str]], certificates: Path) -> None:
        super().__init__(repository, port=0, metrics_port=0)
        self._wanted_flags, self._certificates = wanted, certificates

    def _arguments(self, names: list[str], backends: Path) -> list[str]:
        ours = [word.removeprefix("--").partition("=") for word in super()._arguments(names, backends)]
        here = {name: text for name, _, text in ours if name != "load-model"}
        replaced = ("model-repository", "model-config-name", "grpc-port", "metrics-port", "allow-gpu-metrics")
        only_here = ("backend-directory", "backend-config", "grpc-address", "metrics-address", *replaced)
        arguments = [f"--{name}={here[name]}" for name in only_here]
        for name, values in self._wanted_flags.items():
            for text in [] if name in replaced else values:
                moved = text.replace("/certs", str(self._certificates))
                arguments.append(f"--{name}={moved}" if moved else f"--{name}")
        return arguments

    def _ready_models(self) -> dict[str, tuple[str, ...]]:
        """What is served may be listed with the key alone."""
        try:
            with tritongrpc.InferenceServerClient(self.url) as client:
                models = client.get_model_repository_index(headers={ADMIN_HEADER: KEY}, client_timeout=5).models
        except InferenceServerException:
            return {}
        return {model.name: (model.version,) for model in models if model.state == "READY"}


def healthy(url: str, certificates: Path, **environment: str) -> int:
    command = [sys.executable, DEPLOY / "healthcheck.py", url, certificates]
    clean = {name: text for name, text in os.environ.items() if not name.endswith("TLS")}
    return subprocess.run(command, env={**clean, **environment}, capture_output=True, check=False).returncode


class Secured(Deployed):
    """With mutual TLS: that it is ready is asked with the certificate."""

    def _ready_models(self) -> dict[str, tuple[str, ...]]:
        return {"all": ("1",)} if healthy(self.url, self._certificates, TLS="true", MUTUAL_TLS="true") == 0 else {}

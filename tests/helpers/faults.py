"""A small model that keeps the contract, and NVIDIA's real tritonserver with it, for tests of the client's faults.

Its answer is the mean of the image, so that an answer tells which image it belongs to. Where a file `delay` lies beside
it, it takes that many seconds for each image; while a file `closed` does, it waits. Beside it too, it leaves the file
`busy` when it begins with one.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xray_build.artefacts import MODEL_CODE_FILE
from xray_build.triton.server import TritonServer
from xray_client import Preprocessing, XrayClient, XrayError

MODEL = """
import time
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            (HERE / "busy").touch()
            while (HERE / "closed").exists():
                time.sleep(0.01)
            image = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
            if (HERE / "delay").exists():
                time.sleep(float((HERE / "delay").read_text()))
            p = image.mean(axis=(1, 2, 3), dtype=np.float32) / 255
            outputs = {
                "probability": np.stack([1 - p, p], axis=1),
                "decision": (p > 0.5).astype(np.int32)[:, None],
                "heatmap": np.repeat(p, 49).reshape(-1, 7, 7),
                "novelty": np.full((len(p), 1), 0.5, np.float32),
            }
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(k, v) for k, v in outputs.items()]))
        return responses
"""

CONFIG = """
backend: "python"
max_batch_size: 1
input [{{ name: "image" data_type: TYPE_UINT8 dims: [ 1, 224, 224 ] }}]
output [
  {{ name: "probability" data_type: TYPE_FP32 dims: [ 2 ] }},
  {{ name: "decision" data_type: TYPE_INT32 dims: [ 1 ] }},
  {{ name: "heatmap" data_type: TYPE_FP32 dims: [ 7, 7 ] }},
  {{ name: "novelty" data_type: TYPE_FP32 dims: [ 1 ] }}
]
instance_group [{{ kind: KIND_CPU count: 1 }}]
dynamic_batching {{ {batching} }}
parameters {{ key: "preprocessing" value {{ string_value: "{record}" }} }}
"""


def write_mean_model(repository: Path, *, batching: str = "") -> Path:
    """Write the model as version 1 of `medclip`; returns the version's folder."""
    folder = repository / "medclip" / "1"
    folder.mkdir(parents=True)
    (folder / MODEL_CODE_FILE).write_text(MODEL)
    record = Preprocessing().to_json().replace('"', '\\"')
    (repository / "medclip" / "configs").mkdir()
    (repository / "medclip" / "configs" / "embedded.pbtxt").write_text(CONFIG.format(batching=batching, record=record))
    return folder


class SecuredTriton(TritonServer):
    """The local server with further options of tritonserver, and asked for its readiness by a client that may ask.

    Args:
        repository: As for `TritonServer`.
        arguments: Further arguments of tritonserver.
        asks: Makes that client from the server's address.
    """

    def __init__(
        self, repository: Path, arguments: list[str], asks: Callable[[str], XrayClient], **options: Any
    ) -> None:
        super().__init__(repository, port=0, metrics_port=0, **options)
        self._more = arguments
        self._asks = asks

    def _arguments(self, names: list[str], backends: Path) -> list[str]:
        return [*super()._arguments(names, backends), *self._more]

    def _ready_models(self) -> dict[str, tuple[str, ...]]:
        with self._asks(self.url) as client, suppress(XrayError):
            client.info()  # inference may need a header that this client does not have
            return {"medclip": ("1",)}
        return {}


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, both as PEM."""

    cert: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write both; returns their paths."""
        paths = folder / f"{name}.pem", folder / f"{name}.key"
        paths[0].write_bytes(self.cert)
        paths[1].write_bytes(self.key)
        return paths


def certify(name: str, *, by: Certificate | None = None, expired: bool = False, address: str = "") -> Certificate:
    """Make a certificate for a name and, where given, an address; signed by an authority, or as an authority itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    signer = x509.load_pem_x509_certificate(by.cert) if by else None
    signing = serialization.load_pem_private_key(by.key, None) if by else key
    now = datetime.datetime.now(datetime.timezone.utc)
    days = (-30, -1) if expired else (-1, 30)
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    if address:
        names.append(x509.IPAddress(ipaddress.ip_address(address)))
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(signing, hashes.SHA256())  # type: ignore[arg-type]
    )
    pem = serialization.Encoding.PEM
    form, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return Certificate(built.public_bytes(pem), key.private_bytes(pem, form, no_password))

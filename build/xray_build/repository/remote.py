"""A running Triton, as a publisher uses it: load a version beside the live one, load it over the live one, check it.

The live model is never unloaded. Triton loads over it: it answers with the old version until the new one is ready, and
keeps the old one if the new one does not load. A version that loads and answers wrongly would pass, so it is loaded
under another name and checked first. A version with another preprocessing is refused: the models before `medclip` have
read the live one's when they were loaded.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from xray_build.artefacts import INT8_FILE, LABELS_FILE, ONNX_FILE
from xray_build.errors import BuildError
from xray_build.triton.log import failure_reasons
from xray_client import (
    LABELS,
    TLS,
    Endpoints,
    Prediction,
    Preprocessing,
    PreprocessingMismatch,
    XrayClient,
    XrayError,
    contract,
)
from xray_client.channel import channel_credentials, channel_options
from xray_client.files import write_atomically

from .known_answers import OPENVINO_BACKEND, TOLERANCES, KnownAnswers
from .model_config import WARM_UP_FOLDER, embedded_file, warm_up_file
from .pbtxt import parse_config

# The leading dot keeps a server from loading it as a model of the repository when it starts.
CANDIDATE = f".{contract.MODEL_NAME}-candidate"
# Key of administrative calls, for a server with `--grpc-restricted-protocol=model-repository,...:admin-key=...`.
ADMIN_KEY = "TRITON_ADMIN_KEY"
ADMIN_HEADER = "triton-grpc-protocol-admin-key"
DEFAULT_TIMEOUT_S = 120.0
_POLL_S = 0.1
_CALL_S = 10.0


@dataclass(frozen=True)
class Access:
    """Connection settings of a server, as for `XrayClient`.

    Args:
        tls: TLS settings; None = an unencrypted connection.
        token: Function that returns the bearer token, for a proxy before the server.
        headers: Further headers. The admin key is not among them: it is read from the environment.
    """

    tls: TLS | None = None
    token: Callable[[], str] | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class LiveServer:
    """A Triton that serves the repository that is published into, with `--model-control-mode=explicit`.

    Args:
        url: "host:port" of its gRPC service.
        timeout_s: Limit on each load and on the wait for an answer, seconds.
        access: Connection settings; None = a plain connection.

    Raises:
        BuildError: No server answers at `url`, or a secret would cross the network in the clear.
        TLSFailed: A certificate or key cannot be read.
    """

    def __init__(self, url: str, timeout_s: float = DEFAULT_TIMEOUT_S, access: Access | None = None) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._access = access or Access()
        self._key = os.environ.get(ADMIN_KEY)
        try:
            endpoints = Endpoints.parse(url)
            self._client_of(contract.MODEL_NAME).close()  # wrong options are an error now, before anything is staged
        except ValueError as err:
            raise BuildError(str(err), source=url) from err
        if endpoints.several:
            raise BuildError("several servers", source=url, remedy="name one: each loads the version for itself")
        tls = self._access.tls
        if self._key and not endpoints.loopback and not tls:
            raise BuildError(
                "the admin key would cross the network in the clear", source=url, remedy="give --tls-ca, or --tls"
            )
        try:
            self._client = triton.InferenceServerClient(
                url, creds=channel_credentials(tls), channel_args=channel_options(endpoints, tls)
            )
            ready = self._client.is_server_live(headers=self._headers, client_timeout=_CALL_S)
        except InferenceServerException as err:
            raise BuildError(
                f"no server can be asked to load the version: {err.message()}",
                source=url,
                remedy="check the address and the options --tls..., or publish without --url and start the server "
                "afterwards",
            ) from err
        if not ready:
            raise BuildError("the server is not ready", source=url, remedy="try again in a moment")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @property
    def _headers(self) -> dict[str, str]:
        """Headers of a call, with a fresh token: the one before may have expired."""
        headers = {**self._access.headers, **({ADMIN_HEADER: self._key} if self._key else {})}
        if self._access.token:
            try:
                headers["authorization"] = f"Bearer {self._access.token().strip()}"
            except OSError as err:
                raise BuildError(
                    f"the token cannot be read: {err.strerror}", source=self.url, remedy="check --token-file"
                ) from err
        return headers

    def _client_of(self, model: str) -> XrayClient:
        """Make a client of one model of the server."""
        access = self._access
        return XrayClient(
            self.url, model=model, timeout=_CALL_S, tls=access.tls, token=access.token, headers=access.headers
        )

    def load(self, model: str = contract.MODEL_NAME) -> None:
        """Load a model from the repository, over the version that is loaded; return when it is ready.

        Raises:
            BuildError: It does not load; the version that was loaded before still answers.
        """
        try:
            self._client.load_model(model, headers=self._headers, client_timeout=self.timeout_s)
        except InferenceServerException as err:
            said = err.message() or str(err)
            reasons = "; ".join(failure_reasons(said))
            remedy = "does this server read the repository that you publish into?" if "poll" in said else ""
            if "restricted" in said:
                remedy = f"set {ADMIN_KEY} to the server's admin-key"
            raise BuildError(f"the server cannot load it: {reasons}", source=self.url, remedy=remedy) from err

    def require_preprocessing(self, preprocessing: Preprocessing) -> None:
        """Refuse a version with another preprocessing than the version that the server has loaded.

        Raises:
            BuildError: They differ.
        """
        live = self._live_preprocessing()
        if live is not None and live != preprocessing:
            raise BuildError(
                f"the version needs preprocessing {preprocessing.to_json()}, the live version {live.to_json()}",
                source=self.url,
                remedy="leave out --url, then restart the server (of several, one after the other)",
            )

    def _live_preprocessing(self) -> Preprocessing | None:
        """Preprocessing of the version that is loaded; None if no version is."""
        try:
            config = self._client.get_model_config(
                contract.MODEL_NAME, headers=self._headers, client_timeout=_CALL_S
            ).config
            return Preprocessing.from_json(config.parameters[contract.PREPROCESSING_PARAMETER].string_value)
        except (InferenceServerException, PreprocessingMismatch):
            return None

    def serve(self, known: KnownAnswers, version: int) -> None:
        """Load the live model from the repository, and check that this version gives its known answers.

        Raises:
            BuildError: It does not load, or answers wrongly.
        """
        self.load()
        # A load returns while a later version, gone back from, still answers.
        self.check(known, version)
        if self._failed(contract.ENSEMBLE_MODEL):
            self.load(contract.ENSEMBLE_MODEL)  # it could not be loaded without `medclip`

    def _failed(self, model: str) -> bool:
        """True if a model was to be loaded and is not ready."""
        try:
            index = self._client.get_model_repository_index(headers=self._headers, client_timeout=_CALL_S).models
        except InferenceServerException as err:
            remedy = f"set {ADMIN_KEY} to the server's admin-key" if "restricted" in str(err) else ""
            raise BuildError(
                f"the server does not list its models: {err.message()}", source=self.url, remedy=remedy
            ) from err
        states = {entry.state for entry in index if entry.name == model and entry.state}
        return bool(states) and "READY" not in states

    def check(self, known: KnownAnswers, version: int, *, model: str = contract.MODEL_NAME) -> None:
        """Wait until this version answers, and compare its answers to the known radiographs.

        Raises:
            BuildError: Another version still answers when the time is over, or an answer differs from the known one.
        """
        artefact = self._artefact(model)
        deadline = time.monotonic() + self.timeout_s
        with self._client_of(model) as client:
            for row, image in enumerate(known.images):
                answer = self._ask(client, image)
                while answer.model_version != str(version):
                    if time.monotonic() > deadline:
                        raise BuildError(
                            f"version {answer.model_version} still answers, not {version}",
                            source=self.url,
                            remedy="does this server read the repository that you publish into?",
                        )
                    time.sleep(_POLL_S)
                    answer = self._ask(client, image)
                if difference := known.difference(row, answer, artefact):
                    raise BuildError(f"it answers wrongly: {difference}", source=self.url, remedy="build it again")

    def _ask(self, client: XrayClient, image: npt.NDArray[np.uint8]) -> Prediction:
        try:
            return client.classify(image)
        except XrayError as err:
            raise BuildError(f"it does not answer: {err.message}", source=self.url, remedy=err.remedy) from err

    def _artefact(self, model: str) -> str:
        """File that the engine runs: the key of its tolerance."""
        try:
            config = self._client.get_model_config(model, headers=self._headers, client_timeout=_CALL_S).config
        except InferenceServerException as err:
            raise BuildError(f"the server does not describe it: {err.message()}", source=self.url) from err
        if INT8_FILE in (config.default_model_filename, embedded_file(config)):
            return INT8_FILE
        if config.backend == OPENVINO_BACKEND:
            return OPENVINO_BACKEND
        return config.default_model_filename if config.default_model_filename in TOLERANCES else ONNX_FILE

    def check_candidate(self, repository: Path, folder: Path, configs: Mapping[str, str], known: KnownAnswers) -> None:
        """Load a version that is not published yet beside the live one, and compare its answers with the known ones.

        Args:
            repository: The repository that the server reads.
            folder: Folder of the version.
            configs: Text of each configuration that it will be served with, by its path inside the model's folder.
            known: Known answers of the version.

        Raises:
            BuildError: It does not load or answers wrongly; the live version was not touched.
        """
        candidate = repository / CANDIDATE
        try:
            lay_out_candidate(candidate, folder, configs)
            write_referenced_files(candidate, known)
            self.load(CANDIDATE)
            self.check(known, 1, model=CANDIDATE)
        finally:
            with suppress(InferenceServerException):
                self._client.unload_model(CANDIDATE, headers=self._headers, client_timeout=self.timeout_s)
            shutil.rmtree(candidate, ignore_errors=True)


def lay_out_candidate(candidate: Path, folder: Path, configs: Mapping[str, str]) -> None:
    """Link the version's files as version 1 of a model of another name with the same configurations."""
    shutil.rmtree(candidate, ignore_errors=True)
    shutil.copytree(folder, candidate / "1", copy_function=_link)
    for name, text in configs.items():
        config = parse_config(text)
        config.name = CANDIDATE
        path = candidate / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(config))


def write_referenced_files(model: Path, known: KnownAnswers) -> None:
    """Write the files that every configuration refers to: the labels, and a radiograph to warm up with."""
    write_atomically(model / LABELS_FILE, "\n".join(LABELS) + "\n")
    image = known.images[0]
    write_atomically(model / WARM_UP_FOLDER / warm_up_file(image.shape[-1]), image.tobytes())


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a filesystem without hard links
        shutil.copyfile(source, target)

"""A running Triton, as a publisher sees it: try a version beside the live one, load it over the live one, ask it.

The live model is never unloaded. Triton loads over it: it answers with the old version until the new one is ready, and
keeps the old one where the new one does not load. That says nothing of a version that loads and answers wrongly, so it
is tried first, under a name of its own that nobody asks for. Only the ensemble before it is unloaded, and only where a
version wants its radiographs prepared otherwise.
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
from xray_build.triton import process as program
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

from .golden import BOUNDS, OPENVINO_BACKEND, Known
from .model_config import WARM_UP_FOLDER, embedded_file, parse_config, warm_up_file

# Begins with a dot: no server takes it for a model of the repository when it starts.
CANDIDATE = f".{contract.MODEL_NAME}-candidate"
# What must be shown to a server that was started with `--grpc-restricted-protocol=model-repository,...:admin-key=...`.
ADMIN_KEY = "TRITON_ADMIN_KEY"
ADMIN_HEADER = "triton-grpc-protocol-admin-key"
DEFAULT_TIMEOUT_S = 120.0
_POLL_S = 0.1
_CALL_S = 10.0


@dataclass(frozen=True)
class Access:
    """How a server is reached, and what it is shown; as for `XrayClient`.

    Args:
        tls: How the connection is secured; None = not at all.
        token: Gives the bearer token, for a proxy before the server.
        headers: Further headers. The admin key is not among them: it is read from the environment.
    """

    tls: TLS | None = None
    token: Callable[[], str] | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class LiveServer:
    """A Triton that serves the repository which is published into, with `--model-control-mode=explicit`.

    Args:
        url: "host:port" of its gRPC service.
        timeout_s: Seconds that loading and answering may take, each time.
        access: How it is reached.

    Raises:
        BuildError: Nothing answers there, or a secret would cross the network in the clear.
        TLSFailed: A certificate or key cannot be read.
    """

    def __init__(self, url: str, timeout_s: float = DEFAULT_TIMEOUT_S, access: Access | None = None) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._access = access or Access()
        self._key = os.environ.get(ADMIN_KEY)
        try:
            endpoints = Endpoints.parse(url)
            self._asking(contract.MODEL_NAME).close()  # whatever is wrong with the options, before anything is staged
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
        """Of a call; a token is asked for anew, since it may have ended meanwhile."""
        headers = {**self._access.headers, **({ADMIN_HEADER: self._key} if self._key else {})}
        if self._access.token:
            try:
                headers["authorization"] = f"Bearer {self._access.token().strip()}"
            except OSError as err:
                raise BuildError(
                    f"the token cannot be read: {err.strerror}", source=self.url, remedy="check --token-file"
                ) from err
        return headers

    def _asking(self, model: str) -> XrayClient:
        """A client of a model there."""
        access = self._access
        return XrayClient(
            self.url, model=model, timeout=_CALL_S, tls=access.tls, token=access.token, headers=access.headers
        )

    def load(self, model: str = contract.MODEL_NAME) -> None:
        """Load what the repository holds now, over what is loaded; returns when it answers.

        Raises:
            BuildError: It does not load; what was loaded before still answers.
        """
        try:
            self._client.load_model(model, headers=self._headers, client_timeout=self.timeout_s)
        except InferenceServerException as err:
            said = err.message() or str(err)
            reasons = "; ".join(program.failure_reasons(said))
            remedy = "does this server read the repository that you publish into?" if "poll" in said else ""
            if "restricted" in said:
                remedy = f"set {ADMIN_KEY} to the server's admin-key"
            raise BuildError(f"the server cannot load it: {reasons}", source=self.url, remedy=remedy) from err

    def serve(self, known: Known, version: int, preprocessing: Preprocessing) -> None:
        """Load the live model anew, and see that this version answers as recorded.

        Where it wants its radiographs prepared otherwise than the version that is served, the ensemble before it is
        away meanwhile: refused for a moment, never answered from a wrong picture.

        Args:
            known: Its known answers.
            version: Its number.
            preprocessing: What it wants.

        Raises:
            BuildError: It does not load, or answers wrongly.
        """
        ensemble = self._states(contract.ENSEMBLE_MODEL)
        if ensemble and self._preprocessing() != preprocessing:
            for model in (contract.ENSEMBLE_MODEL, contract.DECODE_MODEL):
                self._unload(model)
        self.load()
        # A load returns while a later version, gone back from, still answers.
        self.check(known, version)
        if ensemble and self._states(contract.ENSEMBLE_MODEL) != {"READY"}:
            self.load(contract.ENSEMBLE_MODEL)  # and `xray_decode`, which reads the new configuration

    def _states(self, model: str) -> set[str]:
        """Of a model's versions; empty = never loaded, so nobody wants it."""
        try:
            index = self._client.get_model_repository_index(headers=self._headers, client_timeout=_CALL_S).models
        except InferenceServerException as err:
            remedy = f"set {ADMIN_KEY} to the server's admin-key" if "restricted" in str(err) else ""
            raise BuildError(
                f"the server does not say what it serves: {err.message()}", source=self.url, remedy=remedy
            ) from err
        return {entry.state for entry in index if entry.name == model and entry.state}

    def _preprocessing(self) -> Preprocessing | None:
        """What is served now wants; None = nothing is served, or nothing that says so."""
        try:
            config = self._client.get_model_config(
                contract.MODEL_NAME, headers=self._headers, client_timeout=_CALL_S
            ).config
            return Preprocessing.from_json(config.parameters[contract.PREPROCESSING_PARAMETER].string_value)
        except (InferenceServerException, PreprocessingMismatch):
            return None

    def _unload(self, model: str) -> None:
        """Until the last request that it works on is answered."""
        try:
            self._client.unload_model(model, headers=self._headers, client_timeout=self.timeout_s)
        except InferenceServerException as err:
            raise BuildError(f"the server does not unload {model}: {err.message()}", source=self.url) from err
        deadline = time.monotonic() + self.timeout_s
        while self._states(model) - {"UNAVAILABLE"}:
            if time.monotonic() > deadline:
                raise BuildError(f"{model} does not end", source=self.url, remedy="see the server's log")
            time.sleep(_POLL_S)

    def check(self, known: Known, version: int, *, model: str = contract.MODEL_NAME) -> None:
        """Wait until this version answers, and answers the known radiographs as recorded.

        Raises:
            BuildError: Another version still answers when the time is over, or the answers are not those recorded.
        """
        artefact = self._artefact(model)
        deadline = time.monotonic() + self.timeout_s
        with self._asking(model) as client:
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
                if wrong := known.difference(row, answer, artefact):
                    raise BuildError(f"it answers wrongly: {wrong}", source=self.url, remedy="build it again")

    def _ask(self, client: XrayClient, image: npt.NDArray[np.uint8]) -> Prediction:
        try:
            return client.classify(image)
        except XrayError as err:
            raise BuildError(f"it does not answer: {err.message}", source=self.url, remedy=err.remedy) from err

    def _artefact(self, model: str) -> str:
        """The file that the engine runs, for the bounds of its answers."""
        try:
            config = self._client.get_model_config(model, headers=self._headers, client_timeout=_CALL_S).config
        except InferenceServerException as err:
            raise BuildError(f"the server does not describe it: {err.message()}", source=self.url) from err
        if INT8_FILE in (config.default_model_filename, embedded_file(config)):
            return INT8_FILE
        if config.backend == OPENVINO_BACKEND:
            return OPENVINO_BACKEND
        return config.default_model_filename if config.default_model_filename in BOUNDS else ONNX_FILE

    def try_out(self, repository: Path, folder: Path, configs: Mapping[str, str], known: Known) -> None:
        """Load a version that is not published yet beside the live one, and compare its answers with the recorded.

        Args:
            repository: The repository that the server reads.
            folder: The version's files.
            configs: Text of each configuration that it is to be served with, by its path inside the model's folder.
            known: Its known answers.

        Raises:
            BuildError: It does not load or answers wrongly; what is live was not touched.
        """
        candidate = repository / CANDIDATE
        try:
            lay_out_candidate(candidate, folder, configs)
            write_companions(candidate, known)
            self.load(CANDIDATE)
            self.check(known, 1, model=CANDIDATE)
        finally:
            with suppress(InferenceServerException):
                self._client.unload_model(CANDIDATE, headers=self._headers, client_timeout=self.timeout_s)
            shutil.rmtree(candidate, ignore_errors=True)


def lay_out_candidate(candidate: Path, folder: Path, configs: Mapping[str, str]) -> None:
    """The version's files, linked, as version 1 of a model with the same configurations under another name."""
    shutil.rmtree(candidate, ignore_errors=True)
    shutil.copytree(folder, candidate / "1", copy_function=_link)
    for name, text in configs.items():
        config = parse_config(text)
        config.name = CANDIDATE
        path = candidate / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(config))


def write_companions(model: Path, known: Known) -> None:
    """What every configuration refers to: the labels, and a radiograph to warm up with."""
    write_atomically(model / LABELS_FILE, "\n".join(LABELS) + "\n")
    image = known.images[0]
    write_atomically(model / WARM_UP_FOLDER / warm_up_file(image.shape[-1]), image.tobytes())


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a filesystem without hard links
        shutil.copyfile(source, target)

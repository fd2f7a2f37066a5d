"""Configurations of the local server, to be measured beside one another."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xray_build.artefacts import LABELS_FILE, ONNX_FILE
from xray_build.backends.embedded.threads import may_spin, threads_of_instance
from xray_build.engines.runtime import Run, onnx_session
from xray_build.repository.configurations import served
from xray_build.repository.ensemble import write_ensemble
from xray_build.repository.model_config import WARM_UP_FOLDER, EngineConfig, ServingConfig, model_config, read_config
from xray_build.repository.pbtxt import to_text
from xray_build.triton.server import EMBEDDED, TritonServer
from xray_client import Preprocessing, XrayError, contract


class BenchError(XrayError):
    """Nothing is published that could be measured."""


@dataclass(frozen=True, eq=False)
class Setting:
    """A configuration of the server.

    Args:
        name: Name for a reader.
        changes: Changes to `EngineConfig`, such as `{"instances": 2}`; `threads` stands for the parameter of that name.
            All else stays as it is in the repository.
        batching: Let Triton answer several requests by one run; without batching there are no priorities either.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    batching: bool = True

    def apply(self, engine: EngineConfig) -> EngineConfig:
        """Return that engine with this configuration."""
        changes = dict(self.changes)
        if "threads" in changes:
            changes["parameters"] = {**engine.parameters, "threads": str(changes.pop("threads"))}
        return replace(engine, **changes)


AS_CONFIGURED = Setting("as configured")


@dataclass(frozen=True)
class Published:
    """The served version of `medclip` in a repository.

    Attributes:
        name: Name of its network, for a reader.
        repository: Model repository.
        version: Version that the configuration `embedded` serves.
        engine: Engine of that configuration.
        serving: Batching, queues and preprocessing of that configuration.
    """

    name: str
    repository: Path
    version: int
    engine: EngineConfig
    serving: ServingConfig

    @classmethod
    def find(cls, name: str, repository: Path) -> Published:
        """Find the served version of a repository.

        Raises:
            BenchError: The repository serves no version.
            BuildError: Its configuration cannot be read.
        """
        version = served(repository).get(EMBEDDED)
        if version is None:
            raise BenchError("no published version", source=str(repository), remedy="`make demo` publishes one")
        path = repository / contract.MODEL_NAME / "configs" / f"{EMBEDDED}.pbtxt"
        return cls(name, repository, version, *read_config(EMBEDDED, path.read_text()))

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing that the version was trained with."""
        return self.serving.preprocessing

    def sessions(self) -> list[Run]:
        """Load the same engine into this process: as many instances as are served, with as many threads each.

        Raises:
            BenchError: The served engine is not ONNX Runtime.
        """
        if self.engine.parameters.get("engine") != "onnxruntime":
            raise BenchError("only ONNX Runtime can be compared with itself", source=str(self.repository))
        graph = self.repository / contract.MODEL_NAME / str(self.version) / ONNX_FILE
        instances = self.engine.instances
        spinning = may_spin(instances, self.threads)
        return [onnx_session(graph, threads=self.threads, spinning=spinning) for _ in range(instances)]

    @property
    def threads(self) -> int:
        """Threads of one instance, as the server chooses them; 0 = the engine's own choice."""
        return threads_of_instance(self.engine.instances, int(self.engine.parameters.get("threads", 0)))

    @contextmanager
    def served_as(self, setting: Setting, log: Path, *, models: Sequence[str] = ()) -> Iterator[TritonServer]:
        """Start a local server with this version under another configuration; the repository stays as it is.

        Args:
            setting: Configuration.
            log: File that the server's output is appended to.
            models: Models to load; empty = all.

        Raises:
            ServerStartError: The server did not become ready.
        """
        with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
            self.lay_out(setting, Path(folder))
            with TritonServer(folder, port=0, metrics_port=0, log=log, models=models) as server:
                yield server

    def lay_out(self, setting: Setting, folder: Path) -> None:
        """Fill an empty folder as a repository with this version, by links, under another configuration."""
        engine = setting.apply(self.engine)
        config = model_config(engine, self.serving)
        if not setting.batching:
            config.ClearField("dynamic_batching")
        there, here = self.repository / contract.MODEL_NAME, folder / contract.MODEL_NAME
        path = here / engine.file
        path.parent.mkdir(parents=True)
        path.write_text(to_text(config, engine.name))
        shutil.copy(there / LABELS_FILE, here)
        for part in (WARM_UP_FOLDER, str(self.version)):
            (here / part).symlink_to((there / part).absolute())
        write_ensemble(folder)

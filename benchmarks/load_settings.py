"""Ways to configure the local server, to be measured beside one another."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xray_build.artefacts import LABELS_FILE, ONNX_FILE
from xray_build.engines.runtime import Run, onnx_session
from xray_build.repository.ensemble import write_front
from xray_build.repository.model_config import (
    WARM_UP_FOLDER,
    EngineConfig,
    ServingConfig,
    model_config,
    read_config,
    text_of,
)
from xray_build.repository.versions import served
from xray_build.triton.server import EMBEDDED, TritonServer
from xray_client import Preprocessing, XrayError, contract


class BenchError(XrayError):
    """There is nothing to measure."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One way to configure the server.

    Args:
        name: What a reader calls it.
        changes: To `EngineConfig`, such as `{"instances": 2}`; `threads` stands for the parameter of that name. What
            is not named is as the repository has it.
        batching: Whether Triton may answer several requests by one run; without it there are no priorities either.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    batching: bool = True

    def of(self, engine: EngineConfig) -> EngineConfig:
        """That engine, configured so."""
        changes = dict(self.changes)
        if "threads" in changes:
            changes["parameters"] = {**engine.parameters, "threads": str(changes.pop("threads"))}
        return replace(engine, **changes)


AS_CONFIGURED = Setting("as configured")


@dataclass(frozen=True)
class Published:
    """A version of `medclip` in a repository.

    Attributes:
        name: Its network, for a reader.
        repository: Model repository.
        version: What its configuration `embedded` serves.
        engine, serving: That configuration.
    """

    name: str
    repository: Path
    version: int
    engine: EngineConfig
    serving: ServingConfig

    @classmethod
    def find(cls, name: str, repository: Path) -> Published:
        """What a repository serves.

        Raises:
            BenchError: Nothing.
            BuildError: Its configuration cannot be read.
        """
        version = served(repository).get(EMBEDDED)
        if version is None:
            raise BenchError("no published version", source=str(repository), remedy="`make demo` publishes one")
        path = repository / contract.MODEL_NAME / "configs" / f"{EMBEDDED}.pbtxt"
        return cls(name, repository, version, *read_config(EMBEDDED, path.read_text()))

    @property
    def preprocessing(self) -> Preprocessing:
        """How its radiographs are prepared."""
        return self.serving.preprocessing

    def sessions(self) -> list[Run]:
        """The same engine in this process: as many instances as are served, with as many threads each.

        Raises:
            BenchError: What is served is not ONNX Runtime.
        """
        if self.engine.parameters.get("engine") != "onnxruntime":
            raise BenchError("only ONNX Runtime can be compared with itself", source=str(self.repository))
        graph = self.repository / contract.MODEL_NAME / str(self.version) / ONNX_FILE
        instances = self.engine.instances
        spinning = instances * self.threads <= len(os.sched_getaffinity(0))  # as `embedded/model.py` has it
        return [onnx_session(graph, threads=self.threads, spinning=spinning) for _ in range(instances)]

    @property
    def threads(self) -> int:
        """Of one instance, as `embedded/model.py` counts them; 0 = the engine's own choice."""
        instances = self.engine.instances
        share = max(1, len(os.sched_getaffinity(0)) // instances) if instances > 1 else 0
        return int(self.engine.parameters.get("threads", 0)) or share

    @contextmanager
    def served_as(self, setting: Setting, log: Path, *, models: Sequence[str] = ()) -> Iterator[TritonServer]:
        """A local server with this version, configured so; no file of the repository is changed.

        Args:
            setting: How.
            log: File that the server's output is added to.
            models: Some of its models; none named = all.

        Raises:
            ServerStartError: It did not become ready.
        """
        with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
            self.lay_out(setting, Path(folder))
            with TritonServer(folder, port=0, metrics_port=0, log=log, models=models) as server:
                yield server

    def lay_out(self, setting: Setting, folder: Path) -> None:
        """Fill an empty folder as a repository with this version, by links, configured so."""
        engine = setting.of(self.engine)
        config = model_config(engine, self.serving)
        if not setting.batching:
            config.ClearField("dynamic_batching")
        there, here = self.repository / contract.MODEL_NAME, folder / contract.MODEL_NAME
        path = here / engine.file
        path.parent.mkdir(parents=True)
        path.write_text(text_of(config, engine))
        shutil.copy(there / LABELS_FILE, here)
        for part in (WARM_UP_FOLDER, str(self.version)):
            (here / part).symlink_to((there / part).absolute())
        write_front(folder)

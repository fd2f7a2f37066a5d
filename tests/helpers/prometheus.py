"""A real Prometheus with the configuration and the rules of docs/deploy, for a server of the tests."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.deployed import DEPLOY

RULES = tuple(path for path in sorted((DEPLOY / "prometheus").glob("*.yml")) if path.name != "prometheus.yml")


def rules() -> list[dict[str, Any]]:
    """All rules of the files."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


sys.path.insert(0, str(DEPLOY / "grafana"))
import render  # noqa: E402


def program(name: str) -> str:
    """`prometheus` or `promtool`; the test is skipped where it is not installed."""
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed here (Debian: apt install prometheus)")
    return found


def configuration(folder: Path, target: str) -> Path:
    """Write the project's configuration and rules to `folder` for one target, with everything done every second."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], "1s")
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["triton:8002"]}]
    job["static_configs"] = [{"targets": [target]}]
    for name in config["rule_files"]:
        rules = yaml.safe_load((DEPLOY / "prometheus" / name).read_text())
        for group in rules["groups"]:
            group.pop("interval", None)
        (folder / name).write_text(yaml.safe_dump(rules))
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


class Prometheus:
    """Runs in `folder` while the `with` lasts.

    Args:
        folder: For its configuration, its samples and its log.
        target: "host:port" of Triton's metrics.
    """

    def __init__(self, folder: Path, target: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{address}"
        self._command = [
            program("prometheus"),
            f"--config.file={configuration(folder, target)}",
            f"--storage.tsdb.path={folder / 'samples'}",
            f"--web.listen-address={address}",
        ]
        self.log = folder / "prometheus.log"

    def __enter__(self) -> Prometheus:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        try:
            self.until(lambda: self.query("up == 1"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an expression at this moment; a wrong one raises."""
        return list(render.ask(self.url, "query", query=expression)["result"])

    def until(self, found: Callable[[], Any], seconds: float = 60) -> Any:
        """What `found` gives, as soon as it gives something."""
        deadline = time.monotonic() + seconds
        while True:
            assert self._process.poll() is None, self.log.read_text()
            try:
                if result := found():
                    return result
            except urllib.error.URLError as err:  # it does not listen yet, or is still starting: 503
                if getattr(err, "code", 503) != 503:
                    raise
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.25)

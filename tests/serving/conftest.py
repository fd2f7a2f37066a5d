"""What the tests of servers and deployments share."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.deployed import DEPLOY
from tests.helpers.echo import ECHO, write_model


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with those of an authority, a server and a caller, made by the script that the documentation names."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificates and is not installed here")
    folder = tmp_path_factory.mktemp("tls") / "certs"
    subprocess.run([DEPLOY / "make-test-ca.sh", folder, "triton"], check=True)
    return folder


@pytest.fixture
def echo_repository(tmp_path: Path) -> Path:
    """A model repository with the model `echo` alone."""
    write_model(tmp_path / "repository", "echo", ECHO)
    return tmp_path / "repository"


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield holder.getsockname()[1]

"""What the tests of deployments share."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from deployed import DEPLOY


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with those of an authority, a server and a caller, made by the script that the documentation names."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificates and is not installed here")
    folder = tmp_path_factory.mktemp("tls") / "certs"
    subprocess.run([DEPLOY / "make-test-ca.sh", folder, "triton"], check=True)
    return folder

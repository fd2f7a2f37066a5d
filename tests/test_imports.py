"""Imports point one way, and the client stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_importing_the_client_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, xray_client; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "xray_client" in loaded
    assert not {"torch", "transformers", "onnxruntime", "matplotlib", "xray_build", "finetune"} & set(loaded)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("client/xray_client", {"xray_build", "finetune", "torch"}), ("build/xray_build", {"finetune"})],
)
def test_imports_point_one_way(package: str, forbidden: set[str]) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.split(".")[0] for name in names} & forbidden, path


def test_build_has_no_init_and_so_never_shadows_the_packaging_tool() -> None:
    assert not (ROOT / "build" / "__init__.py").exists()

"""Imports point one way, never in a circle, and never into another package's private modules; the client stays light.

Imports inside functions and under TYPE_CHECKING count. Docstrings and help texts stand alone, and a file fits in one
reading.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"xray_client": "client", "xray_node": "client", "xray_build": "build", "finetune": ".", "benchmarks": "."}
MAY_IMPORT = {
    "xray_client": set(),
    "xray_node": {"xray_client"},
    "xray_build": {"xray_client"},
    "finetune": {"xray_build", "xray_client"},
    "benchmarks": {"finetune", "xray_build", "xray_client"},
}
HEAVY = {"torch", "transformers", "onnxruntime", "matplotlib", "xray_build", "finetune"}
MAX_LINES = 400
# First words that have nothing to refer to: "What the server said" is no sentence, "Answer of the server" is one.
HEADLESS = re.compile(r"(What|Of|As|Whether|Those|Where|Who|Whose|How|That|Which|It is|Ours|Likewise)\b")


def _modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the packages."""
    found = {}
    for package, parent in PACKAGES.items():
        for path in (ROOT / parent / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT / parent).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = _modules()
TREES = {module: ast.parse(path.read_text(encoding="utf-8"), str(path)) for module, path in MODULES.items()}


def _root(module: str) -> str:
    return module.split(".")[0]


def _imported(module: str) -> Iterator[str]:
    """Modules of the project that a module imports, wherever in the file and for whatever purpose."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, [base, node.module]))
            inside = [f"{origin}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else origin for name in inside]
        else:
            continue
        yield from (name for name in names if _root(name) in PACKAGES)


GRAPH = {module: set(_imported(module)) - {module} for module in MODULES}


def _texts(module: str) -> Iterator[tuple[int, str]]:
    """Docstrings and help texts of a module, each with its line."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield getattr(node, "lineno", 1), ast.get_docstring(node) or ""
        elif isinstance(node, ast.keyword) and node.arg in ("help", "short_help", "epilog"):
            first = node.value
            while isinstance(first, ast.JoinedStr | ast.BinOp):
                first = first.values[0] if isinstance(first, ast.JoinedStr) else first.left
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.value.lineno, first.value


def test_every_import_of_the_project_leads_to_a_module_that_exists() -> None:
    missing = [(module, name) for module, names in GRAPH.items() for name in names if name not in MODULES]
    assert not [(module, name) for module, name in missing if name not in PACKAGES]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    found = {
        (module, name)
        for module, names in GRAPH.items()
        if _root(module) == package
        for name in names
        if _root(name) not in {package} | MAY_IMPORT[package]
    }
    assert not found


def test_no_module_imports_in_a_circle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as err:
        pytest.fail(" -> ".join(reversed(err.args[1])))


def test_private_modules_are_imported_only_inside_the_package_that_holds_them() -> None:
    strangers = set()
    for module, names in GRAPH.items():
        for name in names:
            parts = name.split(".")
            private = next((i for i, part in enumerate(parts) if part.startswith("_") and part != "__init__"), None)
            if private is not None and not f"{module}.".startswith(".".join(parts[:private]) + "."):
                strangers.add((module, name))
    assert not strangers


@pytest.mark.parametrize("module", ["xray_client", "xray_client.testing", "xray_client.cli.main"])
def test_importing_the_client_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert module in loaded
    assert not HEAVY & set(loaded)


def test_build_has_no_init_and_so_never_shadows_the_packaging_tool() -> None:
    assert not (ROOT / "build" / "__init__.py").exists()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_docstrings_and_help_texts_stand_alone(module: str) -> None:
    headless = [
        f"{MODULES[module]}:{line}: {text.splitlines()[0]}" for line, text in _texts(module) if HEADLESS.match(text)
    ]
    assert not headless, "\n".join(headless)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_file_fits_in_one_reading(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= MAX_LINES

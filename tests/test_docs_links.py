"""The pages point at things that exist: links, anchors, files and commands of this repository. Nothing is fetched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {".venv", ".git", "node_modules", "runs", "site", "dist"}
PAGES = sorted(
    path for path in ROOT.rglob("*.md") if not OUTSIDE & set(path.relative_to(ROOT).parts) and path.is_file()
)
PACKAGES = {"benchmarks": "", "finetune": "", "tests": "", "xray_client": "client", "xray_build": "build"}
FENCED = re.compile(r"^( *)(```|~~~).*?^\1\2\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def _prose(page: Path) -> str:
    """Text of a page without its code: fenced blocks and code spans hold brackets that are no links."""
    return re.sub(r"`[^`\n]*`", "``", FENCED.sub("", page.read_text(encoding="utf-8")))


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    headings = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_relative_link_leads_to_a_file_and_every_anchor_to_a_heading(page: Path) -> None:
    broken = []
    for link in LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_file_of_docs_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"(?<![\w/.])docs/[\w./-]+\.(?:md|py|sh|ya?ml|png|js)\b", page.read_text(encoding="utf-8"))
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=_name)
def test_every_command_of_this_project_that_a_page_names_exists(page: Path) -> None:
    missing = []
    for module in re.findall(r"python3? -m ((?:\w+\.)*\w+)", page.read_text(encoding="utf-8")):
        if (package := module.split(".")[0]) in PACKAGES:
            base = ROOT / PACKAGES[package] / module.replace(".", "/")
            if not (base.with_suffix(".py").exists() or (base / "__main__.py").exists()):
                missing.append(module)
    assert not missing


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=_name)
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    code = "\n".join(re.findall(r"(?:^|`)make ([a-z][a-z-]*)\b", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(code.split()) <= targets

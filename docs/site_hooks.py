"""Hooks of mkdocs.yml: links out of docs/ lead to the repository, and no page makes a browser fetch from elsewhere."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
FETCHED = re.compile(r'<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)="((?:https?:)?//[^"]+)"')
ROOT = Path(__file__).resolve().parents[1]
log = logging.getLogger("mkdocs.hooks.site")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Point relative links to files that are no pages at the repository, so that they work in both places."""
    folder = posixpath.dirname(page.file.src_uri)

    def resolved(match: re.Match[str]) -> str:
        target, _, anchor = match[1].partition("#")
        if not target or "://" in target or target.startswith(("/", "mailto:")):
            return match[1]
        inside = posixpath.normpath(posixpath.join(folder, target))
        file = files.get_file_from_path(inside)
        path = posixpath.normpath(posixpath.join("docs", inside))
        if (file is not None and not file.inclusion.is_excluded()) or not (ROOT / path).exists():
            return match[1]  # a page, or a mistake that the strict build reports
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{config.extra['repository']}/{kind}/main/{path}" + (f"#{anchor}" if anchor else "")

    return LINK.sub(resolved, markdown)


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Warn, and so fail the strict build, where a page would load anything from another host."""
    for address in FETCHED.findall(output):
        log.warning("%s fetches %s: nothing here may call home", page.file.src_uri, address)
    return output

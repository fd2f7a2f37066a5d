"""The commands in the pages' code blocks have the options that they are called with."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import click
import pytest

from .test_docs_links import FENCED, PAGES, ROOT

CALL = re.compile(r"^(?:.* )?(?:python3? -m ((?:finetune|benchmarks)\.\w+)|(xray-(?:client|build|server)))((?: .*)?)$")
SCRIPTS = {
    "xray-client": "xray_client.cli.main",
    "xray-build": "xray_build.cli",
    "xray-server": "xray_build.triton.server",
}


def _calls(page: Path) -> list[tuple[str, str]]:
    """Module and arguments of each command in the code blocks of a page."""
    blocks = "\n".join(match[0] for match in FENCED.finditer(page.read_text(encoding="utf-8")))
    lines = re.sub(r"\\\n\s*", " ", blocks).splitlines()
    found = [CALL.match(re.sub(r"\s+#.*", "", line)) for line in lines]
    return [(match[1] or SCRIPTS[match[2]], match[3]) for match in found if match]


@pytest.mark.parametrize("page", [page for page in PAGES if _calls(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_code_blocks_have_the_options_that_they_are_called_with(page: Path) -> None:
    unknown = []
    for module, arguments in _calls(page):
        command = importlib.import_module(module).main
        for word in arguments.split():
            if isinstance(command, click.Group):
                command = command.get_command(click.Context(command), word) or command
        if not isinstance(command, click.Command):
            continue  # argparse, or no options at all
        known = {"--help"}.union(*([*parameter.opts, *parameter.secondary_opts] for parameter in command.params))
        unknown += [
            f"{module}: {option}" for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", arguments) if option not in known
        ]
    assert not unknown

"""Hook of mkdocs: fills the generated parts of the reference pages while the site is built.

docs/reference/*.md with `<!-- generated: NAME -->` --on_page_markdown--> Markdown of the current code
"""

import contextlib
import importlib
import io
import json
import os
from collections.abc import Callable
from typing import Any


def subcommands() -> str:
    """A heading and the text of `--help` for each subcommand of `brasyn`."""
    from brasyn_dist.cli.main import COMMANDS, module_name

    os.environ["COLUMNS"] = "100"
    parts = []
    for name in COMMANDS:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            importlib.import_module(module_name(name)).main(["--help"])
        # The options of a run are a page of their own.
        shown, _, _ = text.getvalue().partition("\nOptions of task ")
        parts.append(f"## brasyn {name}\n\n```text\n{shown.strip()}\n```\n")
    return "\n".join(parts)


def run_options() -> str:
    """Tables of all options of a run, by task and section."""
    from brasyn_dist.config import TASKS, all_options

    lines: list[str] = []
    shown: set[str] = set()
    for task, cls in TASKS.items():
        lines += [f"\n## Task {task}" + (": further options" if shown else "")]
        section = None
        for key, option in all_options(cls):
            if key in shown:
                continue
            shown.add(key)
            parent, _, name = key.rpartition(".")
            if parent != section:
                section = parent
                lines += [
                    f"\n### {section or 'Run'}\n",
                    "| option | values | default | meaning |",
                    "|---|---|---|---|",
                ]
            default = option.default if isinstance(option.default, str) else json.dumps(option.default)
            cells = [f"`{name}`", option.allowed, f"`{default}`", option.description]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def configurations() -> str:
    """Packaged configurations with their first comment line."""
    from brasyn_dist.cli.configs import main

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main(["configs"])
    return f"```text\n{text.getvalue()}```"


GENERATED: dict[str, Callable[[], str]] = {
    "configurations": configurations,
    "subcommands": subcommands,
    "run options": run_options,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page: the page with its generated parts."""
    for name, make in GENERATED.items():
        marker = f"<!-- generated: {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return markdown

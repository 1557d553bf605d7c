"""The documents of the repository and their blocks of shell commands.

A block is executed by test_commands.py unless a comment stands directly before it:

    <!-- needs: GPU -->              what the test machine lacks, one of NEEDS
    <!-- tested: tests/FILE.py -->   the test that executes it
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

DOCUMENTS = [
    *(
        REPOSITORY / name
        for name in ("README.md", "CONTRIBUTING.md", "MODEL_CARD.md", "CHANGELOG.md", "SECURITY.md")
    ),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
NEEDS = {"GPU", "cluster", "network", "root", "container engine"}
BLOCK = re.compile(r"(?:<!-- (needs|tested): (.+?) -->\n)?```(?:bash|sh|shell|console)\n(.*?)```", re.S)


@dataclass(frozen=True)
class Block:
    """A block of shell commands."""

    document: Path
    commands: str
    needs: str | None = None
    tested: str | None = None

    @property
    def executable(self) -> bool:
        """Whether test_commands.py executes it."""
        return self.needs is None and self.tested is None


def blocks(document: Path) -> list[Block]:
    """Blocks of a document, in its order."""
    return [
        Block(document, commands, **({kind: text} if kind else {}))
        for kind, text, commands in BLOCK.findall(document.read_text())
    ]


def commands(document: Path) -> list[str]:
    """Command lines of all blocks, without comments; continued lines are joined."""
    lines = "".join(b.commands for b in blocks(document)).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip()]

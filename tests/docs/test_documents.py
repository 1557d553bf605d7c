"""What the documents say about the repository: links, files, subcommands, promises of the README."""

import os
import re
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.docs.markdown import DOCUMENTS, commands

README = REPOSITORY / "README.md"


def test_the_two_promised_commands_are_there():
    assert "./demo.sh" in commands(README) and "./test.sh" in commands(README)
    for script in ("demo.sh", "test.sh"):
        assert os.access(REPOSITORY / script, os.X_OK)


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= 900


def test_links_lead_to_files_and_headings():
    broken = []
    for document in DOCUMENTS:
        text = re.sub(r"```.*?```", "", document.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            name, _, heading = target.partition("#")
            path = document.parent / name if name else document
            if target.startswith(("http://", "https://")):
                continue
            if not path.exists() or (heading and heading not in headings(path)):
                broken.append(f"{document.relative_to(REPOSITORY)}: {target}")
    assert broken == []


def headings(document: Path) -> set[str]:
    """Anchors of a document's headings, as mkdocs and GitHub make them."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_files_of_the_repository_that_documents_name_exist():
    folders = "brasyn_dist|benchmarks|configs|container|docs|launch|slurm|tests|tools"
    pattern = re.compile(rf"(?<![\w/.-])(?:{folders})/\w[\w./-]*\.(?:py|md|yaml|sh|sbatch|png)\b")
    missing = [
        f"{document.relative_to(REPOSITORY)}: {name}"
        for document in DOCUMENTS
        if document.name != "CHANGELOG.md"
        for name in sorted(set(pattern.findall(document.read_text())))
        if not (REPOSITORY / name).exists()
    ]
    assert missing == []


def test_subcommands_that_documents_name_exist():
    from brasyn_dist.cli.main import COMMANDS

    named = {
        line.split()[1] for document in DOCUMENTS for line in commands(document) if line.startswith("brasyn ")
    }
    assert named <= {*COMMANDS, "--help", "--version"}


def test_every_page_is_in_the_navigation():
    docs = REPOSITORY / "docs"
    pages = {str(p.relative_to(docs)) for p in docs.rglob("*") if p.suffix in (".md", ".ipynb")}
    assert set(re.findall(r"[\w/-]+\.(?:md|ipynb)", (REPOSITORY / "mkdocs.yml").read_text())) == pages

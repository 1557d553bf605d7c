"""Workflows, forms and citation fit their schemas; facts that are in several files agree."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import brasyn_dist
from tests.conftest import REPOSITORY

GITHUB = REPOSITORY / ".github"
SCHEMAS = {
    "github-workflows": sorted((GITHUB / "workflows").glob("*.yml")),
    "github-issue-forms": [GITHUB / "ISSUE_TEMPLATE/bug.yml", GITHUB / "ISSUE_TEMPLATE/feature.yml"],
    "github-issue-config": [GITHUB / "ISSUE_TEMPLATE/config.yml"],
    "citation-file-format": [REPOSITORY / "CITATION.cff"],
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_fit_their_schema(schema: str):
    pytest.importorskip("check_jsonschema", reason="needs the extra dev")
    files = SCHEMAS[schema]
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        f"vendor.{schema}",
        *map(str, files),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert files and done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_hooks_of_pre_commit_run_and_accept_the_repository():
    """mypy and lint-imports are run by test.sh."""
    pytest.importorskip("pre_commit", reason="needs the extra dev")
    if not (REPOSITORY / ".git").exists():
        pytest.skip("pre-commit needs a clone")
    command = [sys.executable, "-m", "pre_commit", "run", "--all-files", "--color", "never"]
    environment = {
        **os.environ,
        "SKIP": "mypy,lint-imports",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Passed") == 3 and done.stdout.count("Skipped") == 2, done.stdout


def test_workflows_call_files_and_extras_of_the_repository():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for path in SCHEMAS["github-workflows"]:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job["steps"]:
                script = step.get("run", "")
                assert all(
                    e in project["optional-dependencies"] for e in re.findall(r'"\.\[(\w+)\]"', script)
                )
                assert not script.startswith(".") or (REPOSITORY / script).is_file()


def test_the_version_is_in_one_place():
    """`brasyn_dist.__version__`; the changelog has a section for it, or for what will be released as it."""
    text = (REPOSITORY / "pyproject.toml").read_text()
    assert "version" in tomllib.loads(text)["project"]["dynamic"]
    sections = re.findall(r"^## \[(.+?)\]", (REPOSITORY / "CHANGELOG.md").read_text(), flags=re.M)
    assert sections[0] == "Unreleased" and brasyn_dist.__version__ in sections


def test_the_changelog_uses_the_words_of_keep_a_changelog():
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, flags=re.M)) <= kinds
    assert all(
        re.fullmatch(r"\[(Unreleased|\d+\.\d+\.\d+)\]( - .+)?", s)
        for s in re.findall(r"^## (.+)$", text, flags=re.M)
    )


def test_the_package_declares_its_types():
    assert Path(brasyn_dist.__file__).with_name("py.typed").is_file()


def test_words_are_spelt_correctly():
    pytest.importorskip("codespell_lib", reason="needs the extra dev")
    folders = ["brasyn_dist", "tests", "tools", "slurm", "configs", "benchmarks", "container", "docs"]
    documents = [p.name for p in REPOSITORY.glob("*.md")]
    command = [sys.executable, "-m", "codespell_lib", *folders, *documents]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

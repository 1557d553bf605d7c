"""Tests of the job scripts that need no Slurm."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "slurm").glob("*.sbatch"))
DOCS = (REPOSITORY / "docs/how-to/slurm.md").read_text()


def test_there_is_one_for_each_stage():
    assert [p.stem for p in SCRIPTS] == ["evaluate", "infer", "shard", "train"]


@pytest.mark.parametrize("script", [*SCRIPTS, REPOSITORY / "slurm/common.sh"], ids=lambda p: p.name)
def test_bash_can_read_it(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_every_job_can_be_requeued_and_is_warned_and_keeps_its_output(script: Path):
    options = re.findall(r"^#SBATCH (\S+)", script.read_text(), flags=re.M)
    assert {"--requeue", "--open-mode=append"} <= set(options)
    assert any(option.startswith("--signal=B:USR1@") for option in options)
    assert not any(option.startswith(("--partition", "--account", "--constraint")) for option in options)


def commands() -> list[str]:
    """Command lines of the bash blocks of docs/how-to/slurm.md, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", DOCS, flags=re.S)
    lines = [line.split("   #")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.strip() for line in lines if line.strip()]


def test_scripts_and_configurations_in_the_docs_exist():
    named = {
        word
        for line in commands()
        for word in re.findall(r"(?<![\w/])(?:slurm|launch|configs|tools|benchmarks)/[\w.]+\.\w+", line)
    }
    assert len(named) >= 8 and [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


def test_the_chain_in_the_docs():
    (line,) = [c for c in commands() if "slurm/submit.py" in c]
    words = [sys.executable if w == "python" else w for w in shlex.split(line)]
    done = subprocess.run([*words, "--dry-run"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jobs = done.stdout.splitlines()
    assert [re.findall(r"(\w+)\.sbatch", j) for j in jobs] == [["shard"], ["train"], ["infer"], ["evaluate"]]
    assert "--dependency" not in jobs[0]
    assert [re.findall(r"afterok:(\w+)", j) for j in jobs[1:]] == [["SHARD"], ["TRAIN"], ["INFER"]]
    assert all("--account=lab" in j for j in jobs) and "--nodes=4 --gpus-per-node=2" in jobs[1]
    assert "--weights runs/recommended" in jobs[2] and "data.shards=shards" in jobs[1]


def test_local_slurm_says_what_it_needs(tmp_path: Path):
    environment = {"PATH": "/usr/bin:/bin", "LOCAL_SLURM_DIR": str(tmp_path / "none")}
    tool = str(REPOSITORY / "tools/local_slurm.sh")
    for word, expected in {"status": "nothing runs in", "": "usage: "}.items():
        done = subprocess.run([tool, *word.split()], env=environment, capture_output=True, text=True)
        assert done.returncode == 1 and expected in done.stderr


def submitted(tmp_path: Path, script: Path | None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run train.sbatch as Slurm does, from a copy elsewhere; `scontrol` names the submitted script."""
    copy = tmp_path / "spool/slurm_script"
    copy.parent.mkdir()
    copy.write_text((REPOSITORY / "slurm/train.sbatch").read_text())
    tool = tmp_path / "bin/scontrol"
    tool.parent.mkdir()
    command = "(null)" if script is None else f"{script} configs/thesis/r3.yaml name=x"
    tool.write_text(f"#!/bin/sh\necho 'JobId=1 JobName=x'\necho '   Command={command}'\n")
    tool.chmod(0o755)
    environment = {
        "PATH": f"{tool.parent}:/usr/bin:/bin",
        "SLURM_JOB_ID": "1",
        "PYTHON": "false",
        **variables,
    }
    return subprocess.run(
        ["bash", copy], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("how", ["as it is", "linked", "in a path with a space", "BRASYN_ROOT", "installed"])
def test_job_scripts_find_their_functions(how: str, tmp_path: Path):
    script: Path | None = REPOSITORY / "slurm/train.sbatch"
    variables = {}
    if how == "linked":
        script = tmp_path / "my.sbatch"
        script.symlink_to(REPOSITORY / "slurm/train.sbatch")
    elif how == "in a path with a space":
        (tmp_path / "a clone").symlink_to(REPOSITORY)
        script = tmp_path / "a clone/slurm/train.sbatch"
    elif how == "BRASYN_ROOT":
        script, variables = None, {"BRASYN_ROOT": str(REPOSITORY)}
    elif how == "installed":
        script, variables = None, {"PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY)}
    done = submitted(tmp_path, script, **variables)
    assert done.returncode == 2 and "no configuration" in done.stdout, done.stderr


@pytest.mark.parametrize("how", ["piped in", "copied"])
def test_job_scripts_ask_for_the_clone_if_they_cannot_find_it(how: str, tmp_path: Path):
    script = None
    if how == "copied":
        script = tmp_path / "jobs/train.sbatch"
        script.parent.mkdir()
        script.touch()
    done = submitted(tmp_path, script)
    assert done.returncode == 2 and "set BRASYN_ROOT" in done.stderr and len(done.stderr.splitlines()) == 1


def test_leaked_memory_options_do_not_reach_the_steps():
    text = "source slurm/common.sh; env | grep SLURM_MEM || echo none"
    done = subprocess.run(
        ["bash", "-c", text],
        env={
            "PATH": "/usr/bin:/bin",
            "SLURM_JOB_ID": "1",
            "SLURM_MEM_PER_CPU": "1",
            "SLURM_MEM_PER_NODE": "2",
        },
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "none\n", done.stderr

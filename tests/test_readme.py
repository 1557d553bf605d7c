"""Commands of README.md and of the how-to guides, run as they are written, on phantom cases and at reduced width."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.small import small_cases

README = REPOSITORY / "README.md"
NARROW = (
    "generator.image_size=48 discriminator.image_size=48 generator.base_channels=8 generator.heads=2 "
    "generator.transformer_layers=1 discriminator.base_channels=8 training.global_batch_size=4 "
    "training.max_steps=4 validation.slices=2 data.cohorts=[train_gli] runtime.threads=1"
)
DOCUMENTS = [
    *(
        REPOSITORY / name
        for name in ("README.md", "CONTRIBUTING.md", "MODEL_CARD.md", "CHANGELOG.md", "SECURITY.md")
    ),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
SUBCOMMAND = "import sys; from brasyn_dist.cli.main import main; sys.exit(main())"


def commands(document: Path = README) -> list[str]:
    """Command lines of the bash blocks of a document, without comments; continued lines are joined."""
    blocks = re.findall(r"```bash\n(.*?)```", document.read_text(), flags=re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.split(" #")[0].strip() for line in lines if line.strip()]


def matching(start: str, document: Path = README) -> str:
    (found,) = [c for c in commands(document) if c.startswith(start)]
    return found


def run(command: str, folder: Path, extra: str = "") -> str:
    """Output of a command in `folder`; paths into the repository are made absolute, `brasyn` is this checkout's."""
    words = [
        re.sub(r"^(configs|launch|tools)/", rf"{REPOSITORY}/\1/", word)
        for word in shlex.split(f"{command} {extra}")
    ]
    if words[0] == "brasyn":
        words = [sys.executable, "-c", SUBCOMMAND, *words[1:]]
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_each_stage_as_the_readme_gives_it(tmp_path: Path):
    small_cases(tmp_path / "data", cases=6)
    run(
        matching("brasyn shard"),
        tmp_path,
        "--minimum-foreground 200 --validation-fraction 0.34",
    )
    assert "GFLOP" in run(
        matching("brasyn train --config configs/thesis/r3.yaml --dry-run"), tmp_path, NARROW
    )
    launched = matching("accelerate launch").replace(
        "--num_processes 2", "--num_processes 2 --main_process_port 0"
    )
    run(launched, tmp_path, NARROW)
    torchrun = matching("torchrun", REPOSITORY / "docs/how-to/train.md")
    again = run(
        torchrun.replace("nproc_per_node 4", "nproc_per_node 2 --standalone"),
        tmp_path,
        f"{NARROW} runtime.precision=bf16",
    )
    assert "continues at step 4" in again
    timings = map(json.loads, (tmp_path / "runs/r3/performance.jsonl").read_text().splitlines())
    assert [line["step"] for line in timings if line.get("resume_seconds", 0) > 0] == [4]
    (tmp_path / "complete_cases").symlink_to(tmp_path / "data/train_gli")
    run(matching("brasyn drop-modality"), tmp_path)
    (tmp_path / "cases").symlink_to(tmp_path / "dropped")
    run(matching("brasyn infer --weights runs/r3"), tmp_path)
    table = run(matching("brasyn evaluate"), tmp_path)
    assert "best copy" in table
    report = (tmp_path / "evaluation/report.html").read_text()
    assert "Not scored" not in report and "http://" not in report and "https://" not in report


def test_the_two_promised_commands_are_there():
    assert "./demo.sh" in commands() and "./test.sh" in commands()
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
    pages = {str(p.relative_to(REPOSITORY / "docs")) for p in (REPOSITORY / "docs").rglob("*.md")}
    assert set(re.findall(r"[\w/-]+\.md", (REPOSITORY / "mkdocs.yml").read_text())) == pages


@pytest.mark.slow
@pytest.mark.real
def test_published_weights_as_the_guide_converts_them(tmp_path: Path, shared: Path):
    """The reference file's names carry a prefix that real checkpoints lack; its network has 4 heads instead of 16."""
    from safetensors.torch import load_file, save_file

    weights = load_file(shared / "reference/generator-grouped.safetensors")
    published = {k.removeprefix("weights."): v for k, v in weights.items() if k.startswith("weights.")}
    save_file(published, tmp_path / "PUBLISHED.safetensors")
    guide = REPOSITORY / "docs/how-to/share-a-model.md"
    run(matching("brasyn convert", guide).replace("--heads 16", "--heads 4"), tmp_path)
    small_cases(tmp_path / "data", cases=2)
    (tmp_path / "complete_cases").symlink_to(tmp_path / "data/train_gli")
    run(matching("brasyn drop-modality"), tmp_path)
    (tmp_path / "cases").symlink_to(tmp_path / "dropped")
    run(matching("brasyn infer --weights exported", guide), tmp_path)
    assert list((tmp_path / "completed").glob("*.nii.gz"))

"""The container: Dockerfile and apptainer.def build the same; the entry point has the challenge's interface.

The entry point runs unchanged: unprivileged user, no network, read-only file system except for the output.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import nibabel
import pytest

from brasyn_dist.brats import MODALITIES
from tests.conftest import REPOSITORY
from tests.inference.small import export, write_subject

CONTAINER = REPOSITORY / "container"
STRANGER = 54321
"""A user without rights, name or home, as `docker run --user` gives them."""


# ---- the two definitions


def docker_instructions() -> list[tuple[str, str]]:
    """(instruction, rest) in order, comments left out."""
    lines = (CONTAINER / "Dockerfile").read_text().splitlines()
    return [
        (line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line and not line.startswith("#")
    ]


def apptainer_sections() -> dict[str, list[str]]:
    """Lines by section; those before the first are the header."""
    sections: dict[str, list[str]] = {"header": []}
    name = "header"
    for line in (CONTAINER / "apptainer.def").read_text().splitlines():
        if line.startswith("%"):
            name = line[1:]
            sections[name] = []
        elif line.strip() and not line.startswith("#"):
            sections[name].append(line.strip())
    return sections


def described_by_docker() -> dict[str, object]:
    arguments, labels, files, commands, environment = {}, {}, {}, [], {}
    base = entry = ""
    for instruction, rest in docker_instructions():
        if instruction == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value.strip('"')
        elif instruction == "FROM":
            base = rest
        elif instruction == "LABEL":
            name, _, value = rest.partition("=")
            labels[name] = value.strip('"')
        elif instruction == "COPY":
            *sources, target = rest.split()
            for source in sources:
                into = target.endswith("/")
                files[source] = str(PurePosixPath(target) / PurePosixPath(source).name) if into else target
        elif instruction == "RUN":
            commands.append(rest.replace("${TORCH}", "<TORCH>"))
        elif instruction == "ENV":
            name, _, value = rest.partition("=")
            environment[name] = value
        elif instruction == "ENTRYPOINT":
            (entry,) = re.findall(r'"([^"]+)"', rest)
        else:
            assert instruction == "USER", f"{instruction} is not compared with apptainer.def"
    return {
        "base": base.replace("${BASE}", "<BASE>"), "arguments": arguments, "labels": labels, "files": files,
        "commands": commands, "environment": environment, "entry": entry,
    }  # fmt: skip


def described_by_apptainer() -> dict[str, object]:
    sections = apptainer_sections()
    known = {"header", "arguments", "labels", "files", "post", "environment", "runscript"}
    assert set(sections) == known, "a section that is not compared with the Dockerfile"
    header = dict(line.split(": ") for line in sections["header"])
    assert header["Bootstrap"] == "docker"
    ((*run, entry, passed_on),) = [shlex.split(line) for line in sections["runscript"]]
    assert run == ["exec"] and passed_on == "$@"
    return {
        "base": re.sub(r"\{\{ (\w+) \}\}", r"<\1>", header["From"]),
        "arguments": dict(line.split("=", 1) for line in sections["arguments"]),
        "labels": dict(line.split(maxsplit=1) for line in sections["labels"]),
        "files": dict(line.split() for line in sections["files"]),
        "commands": [re.sub(r"\{\{ (\w+) \}\}", r"<\1>", line) for line in sections["post"]],
        "environment": dict(line.removeprefix("export ").split("=", 1) for line in sections["environment"]),
        "entry": entry,
    }


def test_dockerfile_and_apptainer_definition_build_the_same():
    docker = described_by_docker()
    assert docker == described_by_apptainer()
    assert docker["arguments"].keys() == {"BASE", "TORCH"} and docker["base"] == "<BASE>"  # type: ignore[attr-defined]


def test_the_image_is_not_run_by_root():
    users = [rest for instruction, rest in docker_instructions() if instruction == "USER"]
    assert len(users) == 1 and all(int(number) > 0 for number in users[0].split(":"))


def test_what_is_copied_is_there_and_let_through():
    """Everything that is copied exists, and .dockerignore, which shuts out all else, lets it through."""
    allowed = [
        line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    for source in described_by_docker()["files"]:  # type: ignore[attr-defined]
        assert (REPOSITORY / source).exists()
        assert PurePosixPath(source).parts[0] in allowed


# ---- the entry point


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """Folder with entry point, weights, two cases of three modalities, and an output for all users."""
    root = Path(tempfile.mkdtemp(prefix="brasyn-container-"))  # pytest's own are for this user alone
    try:
        root.chmod(0o755)
        shutil.copy(CONTAINER / "entrypoint.sh", root)
        export(root / "weights", ["axial"])
        for number, missing in enumerate(("t2f", "t1c")):
            name = f"BraTS-GLI-0000{number}-000"
            write_subject(root / "input", name, [m for m in MODALITIES if m != missing], number)
        (root / "output").mkdir()
        (root / "output").chmod(0o777)
        yield root
    finally:
        shutil.rmtree(root)


def opened(paths: Sequence[Path], staging: Path) -> list[str]:
    """Shell lines that put `paths` in reach of every user, in a mount namespace of one's own.

    A private home folder is closed to other users: an empty folder with the paths is mounted over it.
    """
    closed = {
        path: shut[0]
        for path in paths
        if (shut := [p for p in reversed(path.parents) if not p.stat().st_mode & 0o001])
    }
    stages = {path: staging / str(number) for number, path in enumerate(closed)}
    for stage in stages.values():
        stage.mkdir(parents=True, exist_ok=True)
    quoted = [(shlex.quote(str(path)), shlex.quote(str(stage))) for path, stage in stages.items()]
    return [
        *[f"mount --bind {path} {stage}" for path, stage in quoted],
        *[f"mount -t tmpfs -o mode=755 none {shlex.quote(str(folder))}" for folder in set(closed.values())],
        *[f"mkdir -p {path} && mount --bind {stage} {path}" for path, stage in quoted],
    ]


def confined(
    image: Path, *arguments: str | Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command as another user, without network, with read-only file systems except for the output."""
    output = shlex.quote(str(image / "output"))
    lines = [
        "mount --make-rprivate /",
        *opened([Path(sys.base_prefix), REPOSITORY, Path(sys.prefix)], image / "staging"),
        f"mount --bind {output} {output}",  # stays writable when what is around it no longer is
        "mount -t tmpfs -o ro none /dev/shm",
        "mount -o remount,bind,ro /",
        "if mountpoint -q /tmp; then mount -o remount,bind,ro /tmp; fi",  # where it is a separate file system
        f'cd / && exec setpriv --reuid {STRANGER} --regid {STRANGER} --clear-groups --no-new-privs "$@"',
    ]
    variables = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        **environment,
    }
    return subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-ec", "\n".join(lines), "sh", *arguments],
        env=variables, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


PROBE = """
import os, pathlib, socket, sys
def writable(folder):
    try:
        (pathlib.Path(folder) / "probe").touch()
        (pathlib.Path(folder) / "probe").unlink()
        return True
    except OSError:
        return False
networks = [name for _, name in socket.if_nameindex() if name != "lo"]
print(os.getuid(), [f for f in sys.argv[1:] if writable(f)], networks)
"""


@pytest.fixture(scope="module")
def confinement(image: Path) -> None:
    """Skip without the right to remove network and permissions; fail if they are not removed."""
    if os.getuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("needs root, unshare and setpriv")
    if subprocess.run(["unshare", "--mount", "--net", "mount", "--make-rprivate", "/"]).returncode:
        pytest.skip("this machine permits no namespaces")
    folders = [str(image), str(image / "output"), "/tmp", "/var/tmp", "/dev/shm", str(Path.cwd())]
    result = confined(image, "python3", "-c", PROBE, *folders, environment={})
    assert result.stdout.strip() == f"{STRANGER} {[str(image / 'output')]} []", result.stderr


@pytest.mark.slow
def test_completes_cases_as_a_stranger_offline_and_read_only(image: Path, confinement: None):
    result = confined(
        image, str(image / "entrypoint.sh"), str(image / "input"), str(image / "output"), "--device", "cpu",
        environment={"WEIGHTS": str(image / "weights")},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    made = {p.name for p in (image / "output").iterdir()}
    assert made == {"BraTS-GLI-00000-000-t2f.nii.gz", "BraTS-GLI-00001-000-t1c.nii.gz", "manifest.json"}
    source = nibabel.load(image / "input/BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1c.nii.gz")
    volume = nibabel.load(image / "output/BraTS-GLI-00000-000-t2f.nii.gz")
    assert volume.shape == source.shape and (volume.affine == source.affine).all()
    assert (image / "output/BraTS-GLI-00000-000-t2f.nii.gz").stat().st_uid == STRANGER


@pytest.mark.parametrize(
    ("weights", "input", "output", "message"),
    [
        ("weights", "nowhere", "output", "nowhere: no such folder"),
        ("weights", "input", "nowhere", "nowhere is no folder that user"),
        ("input", "input", "output", "input holds no weights"),
    ],
)
def test_entry_point_says_what_is_missing(image: Path, weights: str, input: str, output: str, message: str):
    result = subprocess.run(
        [image / "entrypoint.sh", image / input, image / output],
        env={"PATH": os.environ["PATH"], "WEIGHTS": str(image / weights)}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2 and message in result.stderr

"""Models by ORG/NAME: upload with a model card, download, cache, offline, refusals; on a stand-in of the hub."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from brasyn_dist.common import optional_packages
from brasyn_dist.errors import CheckpointError, ConfigError
from brasyn_dist.inference.ensemble import load_members
from brasyn_dist.models.hub import is_hub_name
from brasyn_dist.models.registry import Generator, build_generator
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED
from tests.conftest import REPOSITORY
from tests.models.conftest import small_config
from tests.models.hub_server import Hub, running_hub

pytest.importorskip("huggingface_hub")
NAME = "lab/brain"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub of this test; the working directory is empty, and so is the cache."""
    from huggingface_hub import constants

    with running_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.chdir(tmp_path)
        yield server


@pytest.fixture
def generator(tmp_path: Path) -> Generator:
    """Read from a run folder, which has data and metrics."""
    run = tmp_path / "run"
    build_generator(small_config(), 1).save_pretrained(
        run / "export", Preprocessing(PUBLISHED, ("axial",)), step=12
    )
    data = {
        "slices": {"training": 1234, "held_out": 56},
        "shard_set": {"head": ["cohort"], "rows": [["train_gli"]]},
    }
    (run / "data.json").write_text(json.dumps(data))
    lines = [{"kind": "validation", "step": s, "mae": m, "t1c/mae": 9.0} for s, m in ((4, 0.5), (8, 0.25))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Generator.from_pretrained(run)


def evaluation(folder: Path) -> Path:
    folder.mkdir()
    mean = {"mean": 21.5, "low": 20.5, "high": 22.5, "cases": 7}
    (folder / "summary.json").write_text(json.dumps({"means": {"all": {"synthetic": {"psnr/brain": mean}}}}))
    return folder


def test_what_is_pushed_is_what_is_read(hub: Hub, generator: Generator):
    assert NAME in generator.push_to_hub(NAME)
    assert sorted(hub.repositories[NAME]) == ["README.md", "config.json", "model.safetensors"]
    assert hub.private[NAME] is True
    again = Generator.from_pretrained(NAME)
    assert again.config == generator.config and again.preprocessing == generator.preprocessing
    assert again.step == 12
    (member,) = load_members(NAME, torch.device("cpu"))
    assert member.view == "axial"
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), generator.state_dict().values())
    )


def test_the_card_states_data_statistics_views_metrics_use_and_limits(
    hub: Hub, generator: Generator, tmp_path: Path
):
    generator.push_to_hub(NAME, evaluation=evaluation(tmp_path / "e"), private=False)
    text = hub.repositories[NAME]["README.md"].decode()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "brasyn_dist" and "t1c" in head["tags"]
    for expected in (
        "1,234 slices for training, 56 held out", "train_gli", "| T1 native | 7315.0 | 781.2 | 944.3 |",
        "Views: axial.", "`zscore`", "21.5 ± 1", "step 8: mae 0.25", "Not a medical device", "## Limits",
        f'Generator.from_pretrained("{NAME}")', f"--weights {NAME}",
    ):  # fmt: skip
        assert expected in text, expected


def test_without_network_the_cache_is_used(hub: Hub, generator: Generator):
    generator.push_to_hub(NAME)
    Generator.from_pretrained(NAME)
    downloads = [r for r in hub.requests if r.startswith("GET") and "model.safetensors" in r]
    Generator.from_pretrained(NAME)
    assert [r for r in hub.requests if r.startswith("GET") and "model.safetensors" in r] == downloads
    hub.down = True
    assert Generator.from_pretrained(NAME).step == 12


def test_a_model_that_does_not_exist_is_one_line(hub: Hub):
    with pytest.raises(CheckpointError, match=r"^lab/none: no such folder, and no such model") as caught:
        Generator.from_pretrained("lab/none")
    assert "\n" not in str(caught.value)


def test_a_refused_upload_is_one_line(hub: Hub, generator: Generator):
    hub.down = True
    with pytest.raises(CheckpointError, match="lab/brain: could not be uploaded") as caught:
        generator.push_to_hub(NAME)
    assert "\n" not in str(caught.value)


def test_only_org_name_without_such_a_folder_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    assert is_hub_name("lab/brain") and is_hub_name(Path("lab/brain.v2"))
    assert not any(map(is_hub_name, ("runs/r8", "./lab/brain", "/lab/brain", "brain", "a/b/c")))


def test_the_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(optional_packages, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs huggingface_hub.*pip install 'brasyn_dist\[hub\]'"):
        Generator.from_pretrained(NAME)


@pytest.mark.slow
def test_commands_take_a_name_on_the_hub(hub: Hub, generator: Generator, tmp_path: Path):
    """As a user does it: by the environment variables of huggingface_hub."""
    variables = {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_CACHE": str(tmp_path / "c2"),
        "PYTHONPATH": str(REPOSITORY),
    }
    run = lambda *words: subprocess.run(  # noqa: E731
        [sys.executable, "-m", "brasyn_dist", *words],
        env={**os.environ, **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    pushed = run("export", "run", "out", "--push", NAME)
    assert pushed.returncode == 0, pushed.stderr
    fetched = run("export", NAME, "again")
    assert fetched.returncode == 0, fetched.stderr
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        tmp_path / "run/export/model.safetensors"
    ).read_bytes()
    absent = run("export", "lab/none", "nothing")
    assert (
        absent.returncode == 1
        and absent.stderr.startswith("error: lab/none: no such folder")
        and absent.stderr.count("\n") == 1
    )

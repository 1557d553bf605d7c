"""Every case is synthesised by a network that was not trained on its patient; the volumes go into a shard set."""

import json
from pathlib import Path

import pytest

from brasyn_dist.brats import MODALITIES, VIEWS, find_cases
from brasyn_dist.cli.cross_fit import main
from brasyn_dist.cli.shard import main as shard
from brasyn_dist.common.files import sha256_of
from brasyn_dist.data.loading.storage import open_shard_set
from tests.docs.reduced import RUN, UNET
from tests.small import small_cases


@pytest.mark.slow
def test_from_cases_to_shards_with_stage_1_volumes(tmp_path: Path) -> None:
    cases, out = small_cases(tmp_path / "c", cases=5) / "train_gli", tmp_path / "out"
    command = [str(cases), "--out", str(out), "--folds", "2", "--minimum-foreground", "200", *UNET, *RUN]
    assert main(command) == 0
    names = {c.name for c in find_cases(cases)}
    made = {path.name for path in (out / "predictions").iterdir()}
    assert made == {f"{name}-{modality}.nii.gz" for name in names for modality in MODALITIES}
    for fold in ("fold-0", "fold-1"):
        manifest = json.loads((out / fold / "predictions/manifest.json").read_text())
        of_fold = {entry["case"] for entry in manifest["cases"]}
        table = open_shard_set(out / fold / "shards").header.cases
        assert of_fold and not of_fold & {c.name for c in table if c.split == "train"}
        trained = json.loads((out / fold / "run/export/config.json").read_text())["weights_sha256"]
        members = manifest["identity"]["members"]  # the three views of the default configuration
        assert {member["view"] for member in members} == set(VIEWS) and len(members) == len(VIEWS)
        assert {member["weights_sha256"] for member in members} == {trained}
    before = {path: sha256_of(path) for path in (out / "predictions").iterdir()}
    assert main(command) == 0
    assert before == {path: sha256_of(path) for path in (out / "predictions").iterdir()}
    words = [str(cases), "--out", str(tmp_path / "shards"), "--chunks", "16", "--no-slices", "--stage1"]
    assert shard([*words, str(out / "predictions"), "--minimum-foreground", "200"]) == 0
    header = open_shard_set(tmp_path / "shards").header
    assert header.stage1 and all(len(case.stage1_medians or ()) == len(MODALITIES) for case in header.cases)

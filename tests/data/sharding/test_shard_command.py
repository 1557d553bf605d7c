"""tools/shard_dataset.py, as it is called."""

import subprocess

from brasyn_dist.brats import VIEWS
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.preprocessing.statistics import PUBLISHED
from tests.data.case_files import write_case
from tests.data.shard_runs import ARGUMENTS, contents, expected_slices, start


def test_a_set_is_made_and_described(made, cohorts, tmp_path):
    done = start(cohorts, tmp_path / "out", "--workers", "1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = done.communicate()
    assert done.returncode == 0, err
    assert contents(tmp_path / "out") == contents(made)
    assert "encode: 6/6" in err and "\r" not in err, "plain lines where there is no terminal"
    edition, table = out.partition("cohort")[0], out[out.index("cohort") :]
    assert "train_gli: label edition brats2023 (value 3, enhancing tumour, in 4 files" in edition
    rows = [line.split() for line in table.splitlines()]
    assert rows[0] == ["cohort", "split", "cases", "unlabelled", "axial", "sagittal", "coronal", "MB"]
    per_view = {v: sum(f"/{v}/" in key for key in expected_slices()) for v in VIEWS}
    assert rows[5][:6] == ["all", "6", "1", *(str(per_view[v]) for v in VIEWS)]
    assert [row[:2] for row in rows[1:5]] == [
        [c, s] for c in ("train_gli", "train_met") for s in ("train", "val")
    ]


def test_a_bad_case(tmp_path, capsys):
    from brasyn_dist.cli.shard import main

    write_case(tmp_path / "gli", "good", 0)
    (write_case(tmp_path / "gli", "worse", 1) / "worse-t1c.nii.gz").write_bytes(b"bad")
    arguments = [str(tmp_path / "gli"), "--out", str(tmp_path / "out"), *ARGUMENTS, "--workers", "1"]
    assert main(arguments) == 1
    assert "worse-t1c.nii.gz: not a NIfTI file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--skip-bad"]) == 0
    assert "left out: gli/worse" in capsys.readouterr().out
    (tmp_path / "out" / "index.json").unlink()
    assert main(["--rebuild-index", str(tmp_path / "out")]) == 0
    assert "left out: gli/worse" in capsys.readouterr().out
    open_shard_set(tmp_path / "out")


def test_a_split_file_and_published_statistics(cohorts, tmp_path):
    from brasyn_dist.cli.shard import main

    (tmp_path / "split.txt").write_text("BraTS-GLI-00001\n")
    assert main([
        *map(str, cohorts), "--out", str(tmp_path / "out"), "--split", str(tmp_path / "split.txt"),
        "--statistics", "published",
        "--minimum-foreground", "300", "--workers", "1", "--views", "coronal",
    ]) == 0  # fmt: skip
    index = open_shard_set(tmp_path / "out")
    assert [c.name for c in index.header.cases if c.split == "val"] == ["BraTS-GLI-00001-000"]
    assert index.header.statistics == PUBLISHED.to_dict()
    assert index.header.views == ("coronal",)

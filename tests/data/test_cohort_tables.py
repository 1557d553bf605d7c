"""The thesis' tables of a data set, against plain NumPy over its volumes; clipping percentile of shard sets."""

from pathlib import Path

import numpy as np
import pytest

from brasyn_dist.brats import MODALITIES, find_cases
from brasyn_dist.data.nifti import read_case
from brasyn_dist.data.qc.cohort_tables import as_text, cohort_tables
from brasyn_dist.data.qc.measurements import inspect_case
from brasyn_dist.data.sharding.write_shards import ShardOptions, make_shards
from brasyn_dist.preprocessing.slicing import kept_slices
from tests.small import small_cases


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(small_cases(tmp_path_factory.mktemp("tables") / "cases", cases=3).iterdir())


def test_tables_equal_plain_numpy(cohorts: list[Path]):
    cases = [case for cohort in cohorts for case in find_cases(cohort)]
    tables = {title: (head, rows) for title, head, rows in cohort_tables([inspect_case(c) for c in cases])}
    volumes = [read_case(case, MODALITIES) for case in cases]
    voxels = [np.concatenate([v.images[m][v.images[m] > 0] for v in volumes]) for m in range(4)]
    clipping, statistics, slices, shares = (rows for _, rows in tables.values())
    assert [row[0] for row in clipping] == ["95 %", "98 %", "99 %", "99.5 %"]
    for row, p in zip(clipping, (95, 98, 99, 99.5)):
        assert [float(x) for x in row[1:]] == pytest.approx([np.percentile(v, p) for v in voxels], rel=1e-5)
    clipped = [np.minimum(v, np.percentile(v, 99.5)) for v in voxels]
    assert [float(x) for x in statistics[1][1:]] == pytest.approx([v.mean() for v in clipped], abs=1e-3)
    assert [float(x) for x in statistics[2][1:]] == pytest.approx([v.std() for v in clipped], abs=1e-3)
    gli = [v for case, v in zip(cases, volumes) if case.cohort == "train_gli"]
    expected = sum(len(kept_slices(v.images > 0, "axial")) for v in gli)
    assert slices[0][:2] == ["axial", f"{expected:,}"]
    size = sum(v.labels.size for v in gli)
    tumour = 100 * sum(int((v.labels > 0).sum()) for v in gli) / size
    assert shares[0][:2] == ["train_gli", "2"] and shares[0][3] == f"{tumour:.2f} %"
    few = cohort_tables([inspect_case(c, minimum_foreground=200) for c in cases])[2][2]
    assert few[0][1] == f"{sum(len(kept_slices(v.images > 0, 'axial', 200)) for v in gli):,}" != slices[0][1]
    assert "Clipping candidates" in as_text(cohort_tables([inspect_case(cases[0])]))


def test_the_clipping_percentile_of_a_shard_set_is_an_option(cohorts: list[Path], tmp_path: Path):
    maxima = {}
    for percent in (95.0, 99.5):
        options = ShardOptions(
            views=("axial",), minimum_foreground=200, validation_fraction=0, clip_percentile=percent
        )
        index = make_shards(cohorts[:1], tmp_path / str(percent), options)
        maxima[percent] = index.header.statistics["modalities"]["t1c"]["clip_max"]
        assert ("clip_percentile" in index.header.options) == (percent != 99.5)
    images = [read_case(case, MODALITIES).images[0] for case in find_cases(cohorts[0])]
    voxels = np.concatenate([v[v > 0] for v in images])
    assert maxima == {p: pytest.approx(np.percentile(voxels, p)) for p in maxima}

"""Anomalies of a cohort: findings from the measurements of all cases, each with its reason.

Findings are hints: no case is left out because of them, unless the user gives them to `brasyn shard
--exclude`. The limits are the constants below. Outliers are found by robust z-scores (median and scaled
median absolute deviation of the logarithms) of each modality over all cases.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from brasyn_dist.brats import BRATS, ET, VOLUME_SHAPE
from brasyn_dist.data.qc.measurements import CaseFacts, ModalityFacts

MASK_SHARE = 0.002
"""Fraction of the brain voxels above which the mask of a modality counts as different."""
END_SHARE = 0.15
"""An outermost plane above this fraction of the largest plane looks cut off. The largest of ten real subjects
is 0.03."""
BORDER_VOXELS = 1500
"""Foreground voxels on the border of the volume above which the head is cut; a brain stem (400 voxels) may
reach it."""
DISTINCT = 200
"""Fewer different values: a coarse intensity scale."""
SATURATED = 0.001
"""Fraction of the foreground with exactly the maximum above which the volume was clipped."""
ANISOTROPY = 2.0
"""Ratio of the differences of neighbours along two axes above which slices are thick."""
OUTLIER = 3.5
"""Robust z-score; the limit of Iglewicz and Hoaglin (1993)."""
OUTLIER_CASES = 6
"""With fewer cases, outliers are not sought."""
OUTLIER_FACTOR = 1.25
"""Smallest ratio to the median of an outlier, so that homogeneous cohorts have none."""
DUPLICATE = 0.98
"""Correlation of block means in the brain above which volumes of different patients count as duplicates."""
OUTLIER_FACTS = ("median", "p995", "voxels", "roughness", "anisotropy")


@dataclass(frozen=True)
class Finding:
    """One anomaly of one case."""

    case: str
    kind: str
    modality: str
    """Empty: the whole case."""
    detail: str

    def to_dict(self) -> dict[str, str]:
        """JSON content."""
        return asdict(self)


def find_anomalies(facts: Sequence[CaseFacts]) -> list[Finding]:
    """All findings, sorted by kind and case."""
    found = [finding for f in facts for finding in (*_case_findings(f), *_volume_findings(f))]
    found += [*outliers(facts), *duplicates(facts)]
    return sorted(found, key=lambda f: (f.kind, f.case, f.modality))


def _case_findings(facts: CaseFacts) -> Iterator[Finding]:
    name = facts.case.name
    for problem in facts.problems:
        kind = "unreadable" if not facts.modalities else "file"
        yield Finding(name, kind, "", problem.replace(f"{facts.case.folder}/", ""))
    if not facts.modalities:
        return
    is_brats = facts.case.modality_set == BRATS
    if is_brats and facts.shape != VOLUME_SHAPE:
        yield Finding(name, "geometry", "", f"shape {facts.shape}, BraTS has {VOLUME_SHAPE}")
    for note in facts.notes:
        yield Finding(name, "geometry", "", note)
    if facts.orientation != "LPS":
        yield Finding(name, "geometry", "", f"stored in {facts.orientation} order (read alike)")
    if not facts.case.modality_set.labels:
        return
    if facts.labels is None:
        yield Finding(name, "segmentation", "", "none")
        return
    if facts.labels_outside:
        yield Finding(name, "segmentation", "", f"{facts.labels_outside} labelled voxels outside the brain")
    if not any(facts.labels.values()):
        yield Finding(name, "segmentation", "", "empty")
    elif is_brats and not facts.labels[BRATS.labels[ET]]:
        yield Finding(name, "segmentation", "", "no enhancing tumour")


def _volume_findings(facts: CaseFacts) -> Iterator[Finding]:
    for modality, f in facts.modalities.items():
        for kind, detail in _judge(f, facts.brain_voxels):
            yield Finding(facts.case.name, kind, modality, detail)


def _judge(f: ModalityFacts, brain_voxels: int) -> Iterator[tuple[str, str]]:
    if f.extra + f.missing > MASK_SHARE * brain_voxels:
        share = 100 * (f.extra + f.missing) / brain_voxels
        yield "mask differs", f"{f.extra} voxels more, {f.missing} fewer than the brain ({share:.2f} %)"
    cut = {side: share for side, share in f.ends.items() if share > END_SHARE}
    if cut:
        yield "truncated", "flat end: " + ", ".join(f"{s} {100 * a:.0f} %" for s, a in cut.items())
    absent = {axis: n for axis, n in f.absent.items() if n}
    if absent:
        planes = ", ".join(f"{n} along {axis}" for axis, n in absent.items())
        yield "truncated", f"planes with brain that are empty here: {planes}"
    if f.border > BORDER_VOXELS:
        yield "truncated", f"{f.border} foreground voxels on the border of the volume"
    if f.negative:
        yield "intensities", f"{f.negative} voxels below 0, down to {f.minimum}"
    if f.maximum >= 32767:
        yield "intensities", f"up to {f.maximum}: at the limit of 16 bits"
    if f.dtype.startswith("float"):
        yield "intensities", f"stored as {f.dtype}"
    if f.distinct < DISTINCT:
        yield "low quality", f"only {f.distinct} different values"
    if f.saturated > SATURATED:
        yield (
            "low quality",
            f"{100 * f.saturated:.2f} % of the foreground at exactly the maximum ({f.maximum})",
        )
    if f.repeated:
        yield "low quality", f"{f.repeated} axial planes equal the one before"
    if f.anisotropy > ANISOTROPY:
        yield "low quality", f"neighbours differ {f.anisotropy:.2f} times more along one axis: thick slices?"


def outliers(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Volumes whose measurements differ much from others of their modality."""
    for modality in _modalities(facts):
        some = [f for f in facts if modality in f.modalities]
        if len(some) < OUTLIER_CASES:
            continue
        for name in OUTLIER_FACTS:
            values = np.array([float(getattr(f.modalities[modality], name)) for f in some])
            for f, value, z in zip(some, values, robust_z(np.log(np.maximum(values, 1e-6)))):
                median = float(np.median(values))
                if abs(z) > OUTLIER and max(value / median, median / max(value, 1e-6)) > OUTLIER_FACTOR:
                    detail = f"{name} {value:.4g}, median of the cases {median:.4g} (robust z {z:+.1f})"
                    yield Finding(f.case.name, "outlier", modality, detail)


def _modalities(facts: Sequence[CaseFacts]) -> tuple[str, ...]:
    return facts[0].case.modality_set.modalities if facts else ()


def robust_z(values: np.ndarray) -> np.ndarray:
    """Distances from the median in scaled median absolute deviations; 0 if most values are equal."""
    away = values - np.median(values)
    spread = 1.4826 * float(np.median(np.abs(away)))
    return away / spread if spread > 0 else np.zeros_like(away)


def duplicates(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Volumes that are equal, or that correlate strongly and belong to different patients."""
    by_hash: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for f in facts:
        for modality, m in f.modalities.items():
            by_hash[m.sha256].append((f.case.name, modality))
    for volumes in by_hash.values():
        for case, modality in volumes[1:]:
            first = " ".join(volumes[0])
            yield Finding(case, "duplicate", modality, f"equal voxel for voxel to {first}")
    exact = {volume for volumes in by_hash.values() if len(volumes) > 1 for volume in volumes}
    for modality in _modalities(facts):
        some = [f for f in facts if modality in f.modalities and (f.case.name, modality) not in exact]
        yield from _alike(some, modality)


def _alike(facts: Sequence[CaseFacts], modality: str) -> Iterator[Finding]:
    shapes = {f.coarse.shape[1:] for f in facts}
    for shape in shapes:
        some = [f for f in facts if f.coarse.shape[1:] == shape]
        if len(some) < 2:
            continue
        for i, j, value in similar_pairs(np.stack([_blocks(f, modality) for f in some])):
            a, b = some[i], some[j]
            if a.case.patient != b.case.patient:
                yield Finding(
                    b.case.name, "duplicate", modality, f"correlates {value:.4f} with {a.case.name}"
                )


def _blocks(facts: CaseFacts, modality: str) -> np.ndarray:
    return facts.coarse[list(facts.modalities).index(modality)].astype(np.float32).ravel()


def similar_pairs(blocks_CB: np.ndarray) -> list[tuple[int, int, float]]:
    """(i, j, correlation above DUPLICATE) of cases i < j, over blocks that are brain in most cases."""
    common = np.count_nonzero(blocks_CB > 0.05, axis=0) >= 0.9 * len(blocks_CB)
    if np.count_nonzero(common) < 8:
        return []
    x = blocks_CB[:, common]
    x = x - x.mean(axis=1, keepdims=True)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    correlation = x @ x.T
    rows, columns = np.nonzero(np.triu(correlation > DUPLICATE, 1))
    return [(int(i), int(j), float(correlation[i, j])) for i, j in zip(rows, columns)]


def summary_counts(findings: Sequence[Finding]) -> dict[str, int]:
    """Number of cases with findings, by kind."""
    cases: dict[str, set[str]] = defaultdict(set)
    for f in findings:
        cases[f.kind].add(f.case)
    return {kind: len(names) for kind, names in sorted(cases.items())}


def to_json(facts: Sequence[CaseFacts], findings: Sequence[Finding]) -> dict[str, Any]:
    """Content of inspection.json."""
    return {
        "cases": [f.to_dict() for f in facts],
        "findings": [f.to_dict() for f in findings],
        "cases_by_kind": summary_counts(findings),
    }

"""Which modalities are made from which, and when an earlier run's volumes are kept."""

from dataclasses import replace
from pathlib import Path

import nibabel

from brasyn_dist.brats import Case, find_case
from brasyn_dist.common.files import sha256_of
from brasyn_dist.inference.case_requests import (
    CaseRecord,
    CaseRequest,
    best_records,
    kept_record,
    plan_requests,
)
from brasyn_dist.modality_set import ModalitySet
from tests.inference.small import write_subject


def case(*modalities: str) -> Case:
    return Case("c", Path("in/c"), {m: Path(f"in/c/c-{m}.nii.gz") for m in modalities})


def planned(modalities: list[str], *wanted: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    (request,), _ = plan_requests([case(*modalities)], Path("out"), wanted)
    return request.available, request.targets


def test_missing_modalities_are_made_from_those_that_are_there() -> None:
    assert planned(["t1c", "t1n", "t2w"]) == (("t1c", "t1n", "t2w"), ("t2f",))
    assert planned(["t2w", "t1c", "seg"]) == (("t1c", "t2w"), ("t1n", "t2f"))
    assert planned(["t2f"]) == (("t2f",), ("t1c", "t1n", "t2w"))


def test_named_modalities_count_as_missing() -> None:
    everything = ["t1c", "t1n", "t2f", "t2w"]
    assert planned(everything, "t1n") == (("t1c", "t2f", "t2w"), ("t1n",))
    assert planned(everything, "t2w", "t1c") == (("t1n", "t2f"), ("t1c", "t2w"))
    assert planned(["t1c", "t1n", "t2w"], "t1c") == (("t1n", "t2w"), ("t1c",))


def test_modalities_are_those_of_the_model() -> None:
    one = replace(case("t1n", "adc"), modality_set=ModalitySet("m", ("adc", "dwi")))
    (request,), _ = plan_requests([one], Path("out"))
    assert (request.available, request.targets) == (("adc",), ("dwi",))


def test_outputs_have_the_names_of_the_challenge() -> None:
    (request,), _ = plan_requests([case("t1c", "t2w")], Path("out"))
    assert request.outputs == {"t1n": Path("out/c-t1n.nii.gz"), "t2f": Path("out/c-t2f.nii.gz")}


def test_cases_without_anything_to_do_have_a_result() -> None:
    requests, records = plan_requests([case("t1c", "t1n", "t2f", "t2w"), case("seg")], Path("out"))
    assert requests == []
    assert [r.status for r in records] == ["skipped", "failed"]
    assert "nothing is missing" in records[0].reason and "--modality" in records[0].reason
    assert "no modality is left" in records[1].reason
    _, (result,) = plan_requests([case("t1c")], Path("out"), ["t1c"])
    assert result.status == "failed"


def made(tmp_path: Path) -> CaseRequest:
    """A request whose output exists."""
    folder = write_subject(tmp_path / "in", "c", ["t1c", "t1n", "t2w"])
    (request,), _ = plan_requests([find_case(folder)], tmp_path)
    image = nibabel.load(folder / "c-t1c.nii.gz")
    nibabel.save(image, request.outputs["t2f"])
    return request


def test_a_recorded_output_is_kept_only_with_its_bytes(tmp_path: Path) -> None:
    request = made(tmp_path)
    path = request.outputs["t2f"]
    record = CaseRecord(
        "c",
        "done",
        request.available,
        request.targets,
        {"t2f": sha256_of(path)},
        {"network": 3.0},
        worker="w",
    )
    result = kept_record(request, {"c": record})
    assert result is not None and result.status == "kept"
    assert (result.sha256, result.seconds) == (record.sha256, record.seconds)
    assert (result.worker, result.reason) == ("w", "")
    nibabel.save(nibabel.load(request.case.files["t1n"]), path)
    assert kept_record(request, {"c": record}) is None
    path.unlink()
    assert kept_record(request, {"c": record}) is None


def test_an_output_from_other_modalities_is_not_kept(tmp_path: Path) -> None:
    request = made(tmp_path)
    hashes = {"t2f": sha256_of(request.outputs["t2f"])}
    assert kept_record(request, {"c": CaseRecord("c", "done", ("t1c", "t1n"), ("t2f",), hashes)}) is None


def test_an_output_without_a_record_is_made_anew(tmp_path: Path) -> None:
    """It may be another model's, whole as it is."""
    assert kept_record(made(tmp_path), {}) is None


def test_of_two_records_a_successful_one_counts() -> None:
    failed, kept = CaseRecord("c", "failed", reason="GPU lost"), CaseRecord("c", "kept")
    first, second = CaseRecord("c", "done", worker="a"), CaseRecord("c", "done", worker="b")
    for records, best in (([failed, kept], kept), ([failed, kept, first, second], first), ([failed], failed)):
        assert best_records({"c": [r.to_dict() for r in records]}) == {"c": best}


def test_records_survive_json() -> None:
    result = CaseRecord("c", "done", ("t1c",), ("t2f", "t2w"), {"t2f": "ab"}, {"read": 0.5}, "why")
    assert CaseRecord.from_dict(result.to_dict()) == result

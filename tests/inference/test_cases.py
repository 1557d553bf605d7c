"""Which modalities are made from which, and when an earlier run's volumes are kept."""

from pathlib import Path

import nibabel

from brasyn_dist.brats import Case, find_case
from brasyn_dist.common.files import sha256_of
from brasyn_dist.inference.case_results import CaseResult, Task, best_result, finished_result, plan_tasks
from tests.inference.small import write_subject


def case(*modalities: str) -> Case:
    return Case("c", Path("in/c"), {m: Path(f"in/c/c-{m}.nii.gz") for m in modalities})


def planned(modalities: list[str], *wanted: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    (task,), _ = plan_tasks([case(*modalities)], Path("out"), wanted)
    return task.available, task.targets


def test_missing_modalities_are_made_from_those_that_are_there() -> None:
    assert planned(["t1c", "t1n", "t2w"]) == (("t1c", "t1n", "t2w"), ("t2f",))
    assert planned(["t2w", "t1c", "seg"]) == (("t1c", "t2w"), ("t1n", "t2f"))
    assert planned(["t2f"]) == (("t2f",), ("t1c", "t1n", "t2w"))


def test_named_modalities_count_as_missing() -> None:
    everything = ["t1c", "t1n", "t2f", "t2w"]
    assert planned(everything, "t1n") == (("t1c", "t2f", "t2w"), ("t1n",))
    assert planned(everything, "t2w", "t1c") == (("t1n", "t2f"), ("t1c", "t2w"))
    assert planned(["t1c", "t1n", "t2w"], "t1c") == (("t1n", "t2w"), ("t1c",))


def test_outputs_are_named_as_the_challenge_wants() -> None:
    (task,), _ = plan_tasks([case("t1c", "t2w")], Path("out"))
    assert task.outputs == {"t1n": Path("out/c-t1n.nii.gz"), "t2f": Path("out/c-t2f.nii.gz")}


def test_cases_without_anything_to_do_have_a_result() -> None:
    tasks, results = plan_tasks([case("t1c", "t1n", "t2f", "t2w"), case("seg")], Path("out"))
    assert tasks == []
    assert [r.status for r in results] == ["skipped", "failed"]
    assert "nothing is missing" in results[0].reason and "--modality" in results[0].reason
    assert "no modality is left" in results[1].reason
    _, (result,) = plan_tasks([case("t1c")], Path("out"), ["t1c"])
    assert result.status == "failed"


def made(tmp_path: Path) -> Task:
    """A task whose output lies there."""
    folder = write_subject(tmp_path / "in", "c", ["t1c", "t1n", "t2w"])
    (task,), _ = plan_tasks([find_case(folder)], tmp_path)
    image = nibabel.load(folder / "c-t1c.nii.gz")
    nibabel.save(image, task.outputs["t2f"])
    return task


def test_a_recorded_output_is_kept_only_with_its_bytes(tmp_path: Path) -> None:
    task = made(tmp_path)
    path = task.outputs["t2f"]
    record = CaseResult("c", "done", task.available, task.targets, {"t2f": sha256_of(path)}, {"network": 3.0})
    result = finished_result(task, {"c": record})
    assert result is not None and result.status == "kept"
    assert (result.sha256, result.seconds) == (record.sha256, record.seconds)
    nibabel.save(nibabel.load(task.case.files["t1n"]), path)
    assert finished_result(task, {"c": record}) is None
    path.unlink()
    assert finished_result(task, {"c": record}) is None


def test_an_output_from_other_modalities_is_not_kept(tmp_path: Path) -> None:
    task = made(tmp_path)
    hashes = {"t2f": sha256_of(task.outputs["t2f"])}
    assert finished_result(task, {"c": CaseResult("c", "done", ("t1c", "t1n"), ("t2f",), hashes)}) is None


def test_an_output_without_a_record_is_made_anew(tmp_path: Path) -> None:
    """It may be another model's, whole as it is."""
    assert finished_result(made(tmp_path), {}) is None


def test_of_two_results_the_one_that_went_well_counts() -> None:
    failed, kept = CaseResult("c", "failed", reason="GPU lost"), CaseResult("c", "kept")
    first, second = CaseResult("c", "done", worker="a"), CaseResult("c", "done", worker="b")
    assert best_result([failed, kept]) == kept
    assert best_result([failed, kept, first, second]) == first
    assert best_result([failed]) == failed


def test_results_survive_json() -> None:
    result = CaseResult("c", "done", ("t1c",), ("t2f", "t2w"), {"t2f": "ab"}, {"read": 0.5}, "why")
    assert CaseResult.from_dict(result.to_dict()) == result

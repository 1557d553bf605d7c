"""The measurements run at toy sizes, in order, and continue after an interruption; figures are not tested."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.measure import MARKS, Row, fill, measure, read, rows, table
from tests.cli.test_wheel import copy_sources
from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_the_day_of_a_gpu_is_rehearsed(tmp_path: Path):
    """`gpu_day.sh` with a folder of wheels, on the CPU: each kind of row."""
    subprocess.run(
        ["python", "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path / "wheels",
         copy_sources(tmp_path / "source")],
        check=True,
    )  # fmt: skip
    kinds = [
        "ceilings",
        "tests",
        "thesis: default",
        "thesis: plain",
        "thesis: case",
        "thesis: profile",
        "stream",
    ]
    command = [
        REPOSITORY / "benchmarks/gpu_day.sh",
        "--wheels",
        tmp_path / "wheels",
        "--out",
        tmp_path / "out",
    ]
    done = subprocess.run(
        [*command, "--minutes", "20", "--toy", "--only", *kinds], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out/site/brasyn_dist").is_dir()
    lines = {line["row"]: line["result"] for line in read(tmp_path / "out/rows.jsonl")}
    assert list(lines) == [row.name for row in rows(False, True) if row.name.startswith(tuple(kinds))]
    assert lines["thesis: plain"]["operations"] > lines["thesis: default"]["operations"] > 0
    assert lines["thesis: case in no"]["stages"]["network"] > 0
    assert "aten::convolution_backward" in (tmp_path / "out/profile-thesis/profile.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("start", ["loaders", "sharding", "checkpoints", "recommended"])
def test_other_rows_run(tmp_path: Path, start: str):
    chosen = [row for row in rows(False, True) if row.name.startswith(start)]
    measure(chosen, tmp_path, 600)
    lines = read(tmp_path / "rows.jsonl")
    assert [line["status"] for line in lines] == ["done"] * len(chosen), lines


def row(name: str, code: str) -> Row:
    return Row(name, ("-c", code), 60)


def test_rows_are_written_one_by_one_and_not_measured_again(tmp_path: Path):
    broken = tmp_path / "broken"
    broken.touch()
    wanted = [
        row("fails", f"import os, sys; sys.exit(os.path.exists({str(broken)!r}))"),
        row("measures", "print('{\"seconds\": 2}')"),
    ]
    assert measure(wanted, tmp_path, 60) == []
    assert [(line["row"], line["status"]) for line in read(tmp_path / "rows.jsonl")] == [
        ("fails", "failed"), ("measures", "done")
    ]  # fmt: skip
    broken.unlink()
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"row": "cut')  # by a kill
        file.write("\n")
    measure([*wanted, row("new", "print(1)")], tmp_path, 60)
    assert [line["row"] for line in read(tmp_path / "rows.jsonl")[2:]] == [
        "new",
        "fails",
    ]  # failed ones come last
    assert read(tmp_path / "rows.jsonl")[1]["result"] == {"seconds": 2}


def test_a_row_ends_with_its_time_and_none_begins_without_time(tmp_path: Path):
    slow = Row("slow", ("-c", "import time; time.sleep(60)"), 0.5)
    assert measure([slow], tmp_path, 60) == []
    assert read(tmp_path / "rows.jsonl")[0]["status"] == "ended after its time"
    assert measure([slow], tmp_path, 5) == ["slow"]


def test_the_table_has_empty_cells_and_ratios(tmp_path: Path):
    update = {
        "batch": 16, "peak_memory_gib": 20.0, "predicted_gib": 21.0, "operations": 1e13,
        "share_of_operations_ceiling": 0.5, "share_of_larger_ceiling": 0.75,
    }  # fmt: skip
    lines = [
        {"row": f"thesis: {name}", "status": "done", "result": update | {"variant": name, "seconds": seconds}}
        for name, seconds in (("plain", 2.0), ("together", 0.4))
    ]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    fill(page, table(rows(True, False), lines))
    text = page.read_text()
    assert "| thesis: together | 16 | 400 | 5.00 | 20.00 | 21.00 | 25 | 50% | 75% |" in text
    assert "| thesis: default |  |  |  |  |  |  |  |  |" in text
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text


def test_the_page_has_the_table_of_all_rows():
    page = (REPOSITORY / "docs/explanation/performance.md").read_text()
    inside = page.split(MARKS[0])[1].split(MARKS[1])[0]
    wanted = [
        row for row in rows(True, False) if row.command[0].endswith(("bench_train.py", "bench_infer.py"))
    ]
    assert all(f"| {row.name} |" in inside for row in wanted if "--profile" not in row.command)


def test_a_line_is_json(tmp_path: Path):
    measure([row("one", "print(1)")], tmp_path, 60)
    assert set(json.loads((tmp_path / "rows.jsonl").read_text())) >= {
        "row",
        "command",
        "status",
        "wall_seconds",
        "result",
    }

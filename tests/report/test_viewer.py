"""The viewer: what its server sends, and the page in headless Chromium."""

import gzip
import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import nibabel
import numpy as np
import pytest

from brasyn_dist.brats import MODALITIES, find_cases
from brasyn_dist.cli import evaluate, view
from brasyn_dist.data.nifti import read_case, write_like
from brasyn_dist.errors import DataError
from brasyn_dist.report.viewer import make_server, open_viewer
from tests.report.chromium import PROGRAM, Chromium
from tests.small import small_cases

TARGET = "t2f"
SECONDS = 500.0
"""Limit for drawing without a GPU, on a busy machine."""


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cases(tmp_path_factory.mktemp("cases") / "c", cases=3) / "train_gli"


@pytest.fixture(scope="module")
def predictions(references: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of two cases, 10 above the real volume."""
    folder = tmp_path_factory.mktemp("predictions")
    for case in find_cases(references):
        volumes = read_case(case)
        real = volumes.images[MODALITIES.index(TARGET)]
        write_like(
            folder / f"{case.name}-{TARGET}.nii.gz", np.where(real > 0, real + 10, 0), volumes.reference
        )
    return folder


@pytest.fixture(scope="module")
def evaluation(predictions: Path, references: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "e"
    words = ["--predictions", predictions, "--references", references, "--out", out]
    assert evaluate.main([str(w) for w in words]) == 0
    return out


@pytest.fixture(scope="module")
def address(evaluation: Path) -> Iterator[tuple[str, int]]:
    with make_server(open_viewer(evaluation), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield "localhost", server.server_port
        server.shutdown()
        thread.join()


def get(address: tuple[str, int], path: str, **headers: str) -> tuple[int, bytes]:
    connection = HTTPConnection(*address)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def volume(address: tuple[str, int], name: str) -> np.ndarray:
    data = gzip.decompress(get(address, f"/case/0/{name}.nii.gz")[1])
    return np.asanyarray(nibabel.Nifti1Image.from_bytes(data).dataobj)


def test_cases_with_their_scores(address: tuple[str, int], references: Path):
    values = json.loads(get(address, "/cases.json")[1])
    assert [e["case"] for e in values["entries"]] == [c.name for c in find_cases(references)]
    assert values["entries"][0]["cohort"] == "train_gli" and values["report"]
    assert {m["name"] for m in values["metrics"]} == {
        "psnr/brain",
        "mae/brain",
        "ssim/healthy",
        "ssim/tumour",
    }
    assert values["entries"][0]["scores"]["mae/brain"] == pytest.approx(10)


def test_panels_are_inputs_target_synthetic_and_difference_on_one_grid(address: tuple[str, int]):
    values = json.loads(get(address, "/case/0.json")[1])
    names = [p["name"] for p in values["panels"]]
    assert names == [*(m for m in MODALITIES if m != TARGET), "target", "synthetic", "difference"]
    assert values["labels"]
    target, synthetic, difference = (volume(address, n) for n in names[-3:])
    assert target.any() and np.array_equal(synthetic - target, difference)
    assert difference.max() == 10 and volume(address, "labels").shape == target.shape


def test_the_crosshair_starts_in_the_tumour(address: tuple[str, int]):
    labels = volume(address, "labels")
    middle = np.median(np.argwhere(labels), axis=0)
    centre = json.loads(get(address, "/case/0.json")[1])["centre"]
    # Phantoms are stored in LPS order: NiiVue counts x and y from the other end.
    fraction = (middle + 0.5) / labels.shape
    assert centre == pytest.approx([1 - fraction[0], 1 - fraction[1], fraction[2]])


def test_other_hosts_and_other_paths_are_refused(address: tuple[str, int]):
    assert get(address, "/cases.json", Host="example.org")[0] == 403
    assert get(address, "/cases.json", Host="127.0.0.1:80")[0] == 200
    for path in (
        "/case/99.json",
        "/case/0/../../x.nii.gz",
        "/case/0/t9.nii.gz",
        "/etc/passwd",
        "/third_party/x",
    ):
        assert get(address, path)[0] == 404


def test_a_report_has_links_to_the_page(address: tuple[str, int], references: Path):
    status, page = get(address, "/report.html")
    name = find_cases(references)[0].name
    assert status == 200 and f'data-case="{name}"'.encode() in page and b"Open in the viewer" in page


def test_predictions_without_references(predictions: Path):
    data = open_viewer(predictions)
    assert [p["name"] for p in data.panels(0)["panels"]] == ["synthetic"]


def test_inputs_of_predictions(predictions: Path, references: Path):
    names = [p["name"] for p in open_viewer(predictions, cases=references).panels(0)["panels"]]
    assert names[:3] == [m for m in MODALITIES if m != TARGET]


def test_what_is_missing_is_named(evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    summary = json.loads((evaluation / "summary.json").read_text())
    (tmp_path / "cases.csv").write_text((evaluation / "cases.csv").read_text())
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "references": "/moved/away"}))
    assert view.main([str(tmp_path)]) == 1
    assert "/moved/away: no such folder" in capsys.readouterr().err
    with (
        make_server(open_viewer(evaluation), 0) as server,
        pytest.raises(DataError, match="give another --port"),
    ):
        make_server(open_viewer(evaluation), server.server_port)


@pytest.fixture(scope="module")
def page(address: tuple[str, int]) -> Iterator[Chromium]:
    if PROGRAM is None:
        pytest.skip("no Chromium on this machine")
    with Chromium() as browser:
        browser.open(f"http://{address[0]}:{address[1]}/", 800, 600)
        browser.wait_for("document.body?.dataset.ready === '0'", SECONDS)
        yield browser


def crosshairs(page: Chromium) -> list[list[float]]:
    return page.evaluate("viewer.panels.map(p => Array.from(p.nv.scene.crosshairPos))")


PIXELS = """(position => {
  const p = viewer.panels[position], c = p.canvas, copy = document.createElement('canvas');
  [copy.width, copy.height] = [c.width, c.height];
  p.nv.drawScene();
  const drawn = copy.getContext('2d');
  drawn.drawImage(c, 0, 0);
  return Array.from(drawn.getImageData(0, 0, c.width, c.height).data).filter((_, k) => k % 4 == 0);
})"""


@pytest.mark.slow
def test_the_page_draws_scrolls_and_is_operated_by_keys(page: Chromium):
    """In one browser, since it takes seconds to start."""
    target, synthetic, difference = (np.array(page.evaluate(f"{PIXELS}({k})")) for k in (3, 4, 5))
    for drawn in (target, synthetic, difference):
        assert len(np.unique(drawn)) > 20
    assert not np.array_equal(target, difference)

    before = crosshairs(page)
    assert all(place == pytest.approx(before[0]) for place in before)
    page.key("1")
    page.wait_for("viewer.panels.every(p => p.nv.opts.sliceType === 0)")
    axial = page.evaluate(f"{PIXELS}(3)")
    middle = "(r => [r.x + r.width / 2, r.y + r.height / 2])"
    page.wheel(*page.evaluate(f"{middle}(viewer.panels[0].canvas.getBoundingClientRect())"), 120)
    page.wait_for(f"viewer.panels.every(p => p.nv.scene.crosshairPos[2] !== {before[0][2]})")
    after = crosshairs(page)
    assert all(place == pytest.approx(after[0]) for place in after)
    assert page.evaluate(f"{PIXELS}(3)") != axial

    page.key("ArrowUp")
    moved = crosshairs(page)
    assert moved[0][2] > after[0][2] and all(place[2] == pytest.approx(moved[0][2]) for place in moved)

    with_tumour = page.evaluate(f"{PIXELS}(3)")
    page.key("t")
    assert page.evaluate("viewer.overlay") is False
    assert page.evaluate(f"{PIXELS}(3)") != with_tumour

    page.key("5")
    page.wait_for("viewer.panels.every(p => p.nv.opts.sliceType === 4)")
    assert len(np.unique(page.evaluate(f"{PIXELS}(3)"))) > 20

    page.key("ArrowRight")
    page.wait_for("document.body.dataset.ready === '1'", SECONDS)
    assert page.evaluate("document.querySelector('aside tr[aria-selected=true]').dataset.number") == "1"
    assert page.errors == []


@pytest.mark.slow
def test_a_narrow_page_has_readable_panels_and_does_not_scroll_sideways(page: Chromium):
    page.resize(500, 900)
    page.wait_for("innerWidth === 500", SECONDS)
    assert page.evaluate("document.documentElement.scrollWidth") <= 500
    assert page.evaluate("viewer.panels.every(p => p.canvas.clientWidth > 150)")
    assert page.evaluate("viewer.panels.every(p => p.title.scrollWidth <= p.title.clientWidth)")

"""Page on localhost that shows predictions beside the real volumes, drawn by NiiVue in the browser.

    predictions, case folders, cases.csv --> ViewerData --> JSON and NIfTI files --HTTP--> viewer.html.j2

    /                       page
    /niivue.js              NiiVue, from report/third_party
    /cases.json             predictions with their scores
    /case/N.json            panels of prediction number N: inputs, target, synthetic, difference; labels
    /case/N/NAME.nii.gz     one volume of it
    /report.html            report of the evaluation, with links to the page

Volumes are read when they are asked for; those of the last two predictions are kept.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nibabel
import numpy as np
import pandas as pd
from isal import igzip
from matplotlib.colors import to_rgb

from brasyn_dist.brats import PREDICTIONS_MANIFEST, Case, find_cases
from brasyn_dist.common.files import read_json
from brasyn_dist.data.nifti import check_geometry, read_case, read_volume
from brasyn_dist.errors import BrasynError, DataError
from brasyn_dist.evaluation.image_metrics import bounding_box
from brasyn_dist.evaluation.scoring import SYNTHETIC, Prediction, find_predictions, modality_set_of
from brasyn_dist.evaluation.tables import read_table
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.report.case_views import MARGIN, QUOTED, available_modalities
from brasyn_dist.report.rendering import DARK, LIGHT, environment
from brasyn_dist.report.score_tables import title_of

NIIVUE = "niivue.umd.js.gz"
TARGET, DIFFERENCE, LABELS = "target", "difference", "labels"
LABEL_COLOURS = ("#ff5f6d", "#4fd06b", "#ffd23f", "#35d0ff", "#d06bff", "#ff9f43")
"""Colours of the labels in the order of their values."""
DIFFERENCE_RANGE = 0.5
"""Difference with full colour, as a fraction of the largest intensity that is shown."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Panel:
    """One volume of a case, and how it is shown."""

    name: str
    title: str
    volume: np.ndarray
    """(x, y, z) in LPS order."""
    maximum: float
    """Intensity that is shown white; of a difference, that has the full colour."""


@dataclass(frozen=True)
class ViewedCase:
    """Panels of one prediction, on one grid."""

    panels: list[Panel]
    labels: np.ndarray | None
    affine: np.ndarray


class ViewerData:
    """What the page shows.

    Args:
        predictions: Folder of the predictions.
        cases: Folder with the case folders: inputs, and targets if they exist. None: only predictions.
        evaluation: Folder of an evaluation, for scores and its report.

    Raises:
        DataError: A folder does not exist or holds nothing to show.
    """

    def __init__(self, predictions: Path, cases: Path | None, evaluation: Path | None = None) -> None:
        self.modality_set: ModalitySet = modality_set_of(predictions)
        self.predictions = find_predictions(predictions, self.modality_set)
        found = find_cases(cases, modality_set=self.modality_set) if cases is not None else []
        self.cases: dict[str, Case] = {case.name: case for case in found}
        self.inputs = available_modalities(predictions)
        self.scores = synthetic_scores(evaluation) if evaluation else {}
        self.report = evaluation / "report.html" if evaluation else None
        self.case = lru_cache(maxsize=2)(self._read)

    def listing(self) -> dict[str, Any]:
        """Content of cases.json."""
        entries = []
        for prediction in self.predictions:
            case = self.cases.get(prediction.case)
            entries.append(
                {
                    "case": prediction.case,
                    "modality": prediction.modality,
                    "cohort": case.cohort if case else "",
                    "scores": self.scores.get((prediction.case, prediction.modality), {}),
                }
            )
        shown = [n for n in QUOTED if any(n in entry["scores"] for entry in entries)]
        return {
            "entries": entries,
            "metrics": [{"name": n, "title": title_of(n)} for n in shown],
            "labels": label_legend(self.modality_set),
            "report": self.report is not None and self.report.is_file(),
        }

    def panels(self, number: int) -> dict[str, Any]:
        """Content of /case/N.json."""
        case = self.case(number)
        return {
            "panels": [{"name": p.name, "title": p.title, "maximum": p.maximum} for p in case.panels],
            "labels": case.labels is not None,
            "centre": centre_of(case),
        }

    def volume(self, number: int, name: str) -> bytes:
        """Compressed NIfTI file of one panel or of the labels. Raises KeyError if there is none."""
        case = self.case(number)
        arrays = {p.name: p.volume for p in case.panels}
        if case.labels is not None:
            arrays[LABELS] = case.labels
        array = arrays[name]
        stored = array if array.dtype in (np.uint8, np.int16) else array.astype(np.float32)
        return igzip.compress(nibabel.Nifti1Image(stored, case.affine).to_bytes(), 1)

    def _read(self, number: int) -> ViewedCase:
        prediction: Prediction = self.predictions[number]
        synthetic = read_volume(prediction.path, round_values=True)
        case = self.cases.get(prediction.case)
        title = self.modality_set.title
        if case is None:
            peak = peak_of(synthetic.array)
            lone = Panel(SYNTHETIC, f"Synthetic: {title(prediction.modality)}", synthetic.array, peak)
            return cropped(ViewedCase([lone], None, synthetic.affine))
        volumes = read_case(case, case.available, round_values=True)
        check_geometry(volumes.reference, synthetic)
        images = dict(zip(volumes.modalities, volumes.images))
        target = images.pop(prediction.modality, None)
        inputs = self.inputs.get(case.name, tuple(images))
        panels = [
            Panel(m, f"Input: {title(m)}", images[m], peak_of(images[m])) for m in inputs if m in images
        ]
        # The real and the synthetic volume have one grey scale.
        peak = peak_of(synthetic.array if target is None else target)
        if target is not None:
            panels.append(Panel(TARGET, f"Target: {title(prediction.modality)}", target, peak))
        panels.append(Panel(SYNTHETIC, f"Synthetic: {title(prediction.modality)}", synthetic.array, peak))
        if target is not None:
            difference = synthetic.array.astype(np.float32) - target
            panels.append(Panel(DIFFERENCE, "Synthetic − target", difference, DIFFERENCE_RANGE * peak))
        return cropped(ViewedCase(panels, volumes.labels, volumes.reference.affine))


def cropped(case: ViewedCase) -> ViewedCase:
    """The case without the background around the brain: less than half of the voxels."""
    box = bounding_box(np.any([p.volume > 0 for p in case.panels], axis=0), MARGIN)
    affine = case.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    panels = [replace(panel, volume=panel.volume[box]) for panel in case.panels]
    return ViewedCase(panels, None if case.labels is None else case.labels[box], affine)


def peak_of(volume: np.ndarray) -> float:
    """99.5th percentile of the foreground, at least 1."""
    foreground = volume[volume > 0]
    return max(1.0, float(np.percentile(foreground, 99.5))) if len(foreground) else 1.0


def centre_of(case: ViewedCase) -> list[float]:
    """Position (x, y, z) in [0, 1] of the tumour's centre, or of the brain's without a tumour."""
    marked = case.labels if case.labels is not None and case.labels.any() else case.panels[0].volume > 0
    places = np.argwhere(marked)
    middle = np.median(places, axis=0) if len(places) else np.array(marked.shape) / 2
    # Along an axis that the affine reverses, NiiVue counts from the other end.
    fraction = (middle + 0.5) / marked.shape
    return np.where(np.diag(case.affine)[:3] < 0, 1 - fraction, fraction).tolist()


def label_legend(modality_set: ModalitySet) -> list[dict[str, Any]]:
    """Value, name and colour of every label."""
    return [
        {"value": value, "name": name, "colour": colour, "rgb": [round(255 * c) for c in to_rgb(colour)]}
        for (value, name), colour in zip(sorted(modality_set.labels.items()), LABEL_COLOURS)
    ]


def synthetic_scores(evaluation: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Scores of the synthetic volumes in cases.csv, by (case, modality)."""
    table = read_table(evaluation)
    own = table[table.method == SYNTHETIC].set_index(["case", "modality"])
    columns = [name for name in QUOTED if name in own]
    return {
        (str(case), str(modality)): {n: float(row[n]) for n in columns if pd.notna(row[n])}
        for (case, modality), row in zip(own.index, own[columns].to_dict("records"))
    }


def open_viewer(path: Path, cases: Path | None = None, predictions: Path | None = None) -> ViewerData:
    """The data of an evaluation folder or of a folder of predictions.

    Args:
        path: Folder of `brasyn evaluate` or of `brasyn infer`.
        cases: Folder of the case folders; None: the one that the evaluation or the manifest names.
        predictions: Folder of the predictions; None: the one that the evaluation names.

    Raises:
        DataError: A folder does not exist any more, or holds nothing to show.
    """
    evaluation = path if (path / "cases.csv").is_file() else None
    if evaluation is None:
        recorded = read_json(path / PREDICTIONS_MANIFEST).get("details", {}).get("input")
        return ViewerData(path, existing(cases, recorded, path, "--cases"))
    summary = path / "summary.json"
    shown = existing(predictions, read_json(summary).get("predictions"), path, "--predictions")
    if shown is None:
        raise DataError(f"{summary}: names no folder of predictions; give --predictions DIR")
    references = existing(cases, read_json(summary).get("references"), path, "--cases")
    return ViewerData(shown, references, evaluation)


def existing(given: Path | None, recorded: str | None, source: Path, option: str) -> Path | None:
    """The folder that the user gave, or else the recorded one. Raises DataError if it does not exist."""
    chosen = given or (Path(recorded) if recorded else None)
    if chosen is not None and not chosen.is_dir():
        raise DataError(f"{chosen}: no such folder, but {source} refers to it; give {option} DIR")
    return chosen


def make_server(data: ViewerData, port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1; port 0 takes a free one. Raises DataError if the port is in use."""

    class Handler(ViewerHandler):
        viewed = data

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise DataError(f"port {port} cannot be used ({error.strerror}); give another --port") from None


class ViewerHandler(BaseHTTPRequestHandler):
    """Answers the requests of the page. Requests that name another host are refused."""

    viewed: ViewerData
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a request."""
        # A page of another site must not read the volumes by a host name that it points to 127.0.0.1.
        if not re.fullmatch(rf"({'|'.join(map(re.escape, LOOPBACK))})(:\d+)?", self.headers.get("Host", "")):
            self.send_text(HTTPStatus.FORBIDDEN, "open the page as http://localhost")
            return
        try:
            body, kind, more = self.content(unquote(urlsplit(self.path).path))
        except (LookupError, ValueError):
            self.send_text(HTTPStatus.NOT_FOUND, "no such page")
        except (BrasynError, OSError) as error:
            self.send_text(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        else:
            self.send_body(HTTPStatus.OK, body, kind, more)

    def content(self, path: str) -> tuple[bytes, str, Mapping[str, str]]:
        """(body, content type, further headers) of a path. Raises LookupError if there is none."""
        if path == "/":
            page = environment().get_template("viewer.html.j2").render(light=LIGHT, dark=DARK)
            return page.encode(), "text/html; charset=utf-8", {}
        if path == "/niivue.js":
            code = files("brasyn_dist.report").joinpath("third_party", NIIVUE).read_bytes()
            return code, "text/javascript; charset=utf-8", {"Content-Encoding": "gzip"}
        if path == "/cases.json":
            return json.dumps(self.viewed.listing()).encode(), "application/json", {}
        if path == "/report.html" and self.viewed.report is not None:
            return report_with_links(self.viewed.report), "text/html; charset=utf-8", {}
        if match := re.fullmatch(r"/case/(\d+)\.json", path):
            return json.dumps(self.viewed.panels(int(match[1]))).encode(), "application/json", {}
        if match := re.fullmatch(r"/case/(\d+)/([^/]+)\.nii\.gz", path):
            return self.viewed.volume(int(match[1]), match[2]), "application/gzip", {}
        raise LookupError(path)

    def send_text(self, status: HTTPStatus, text: str) -> None:
        """Send a plain text."""
        self.send_body(status, text.encode(), "text/plain; charset=utf-8", {})

    def send_body(self, status: HTTPStatus, body: bytes, kind: str, more: Mapping[str, str]) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Cache-Control": "no-store", **more}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(ConnectionError):  # the page has gone on to another case
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """No line for each request."""


def report_with_links(path: Path) -> bytes:
    """An evaluation's report with a link to the viewer at every case."""
    script = (
        "<script>for(const c of document.querySelectorAll('.case[data-case]')){const a=document."
        "createElement('a');a.textContent='Open in the viewer';a.href='/#'+encodeURIComponent("
        "c.dataset.case);c.querySelector('h3').append(' ',a)}</script>"
    )
    return path.read_text().replace("</body>", f"{script}</body>").encode()

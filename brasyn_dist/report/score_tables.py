"""Scores as people read them: cards that say how the synthesis stands, tables by target, method and region."""

from collections.abc import Mapping, Sequence

from brasyn_dist.brats import MODALITY_NAMES, REGIONS
from brasyn_dist.evaluation import image_metrics, segmentation_metrics
from brasyn_dist.evaluation.image_metrics import better
from brasyn_dist.evaluation.scoring import SYNTHETIC
from brasyn_dist.evaluation.tables import ALL, HEADLINES, OVERLAP_HEADLINES, Mean, number
from brasyn_dist.report.page import bullets, cards, escape, fold, scroll

Summary = Mapping[str, Mapping[str, Mapping[str, Mean]]]
"""[modality or `all`][method][score name] -> Mean."""

TITLES = {
    "mae": "MAE",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "challenge_ssim": "Challenge SSIM",
    "dice": "Dice",
    "nsd": "NSD",
    "voxel_nsd": "Voxel NSD",
    "hd95": "HD95",
}
DESCRIPTIONS = {**image_metrics.DESCRIPTIONS, **segmentation_metrics.DESCRIPTIONS}
CARDS = ("mae/brain", "psnr/brain", "ssim/healthy", "ssim/tumour")
_ALL_TARGETS = "All targets"


def split(name: str) -> tuple[str, str]:
    """`mae/brain` to (measure, region)."""
    measure, _, region = name.partition("/")
    return measure, region


def title_of(name: str) -> str:
    measure, region = split(name)
    return f"{TITLES.get(measure, measure.replace('_', ' '))}{f', {region}' if region else ''}"


def is_overlap(name: str) -> bool:
    return split(name)[0] in segmentation_metrics.DESCRIPTIONS


def target_title(modality: str) -> str:
    return _ALL_TARGETS if modality == ALL else MODALITY_NAMES[modality]


def score_names(summary: Summary) -> list[str]:
    """All scores that any method has, in the order in which they come."""
    return list(dict.fromkeys(n for methods in summary.values() for means in methods.values() for n in means))


def standing(summary: Summary) -> str:
    """Cards of the main scores over all targets, each beside the best baseline, and where baselines are better."""
    if SYNTHETIC not in summary.get(ALL, {}):
        return ""
    ours = summary[ALL][SYNTHETIC]
    entries = [(title_of(n), number(ours[n]), _beside(summary[ALL], n)) for n in CARDS if n in ours]
    dice = [f"dice/{r}" for r in REGIONS if f"dice/{r}" in ours]
    entries += [(title_of(n), number(ours[n]), "of the completed case") for n in dice]
    return cards(entries) + _where_beaten(summary)


def best_baseline(methods: Mapping[str, Mapping[str, Mean]], name: str) -> tuple[str, Mean] | None:
    found = [(m, means[name]) for m, means in methods.items() if m != SYNTHETIC and name in means]
    return max(found, key=lambda entry: better(name) * entry[1].mean, default=None)


def _beside(methods: Mapping[str, Mapping[str, Mean]], name: str) -> str:
    found = best_baseline(methods, name)
    if found is None:
        return "± half of the 95 % interval" if methods[SYNTHETIC][name].high is not None else "a single case"
    gain = better(name) * (methods[SYNTHETIC][name].mean - found[1].mean)
    word, kind = ("better", "good") if gain > 0 else ("not better", "bad")
    return f'<span class="{kind}">{word}</span> than {escape(found[0])}, {number(found[1])}'


def _where_beaten(summary: Summary) -> str:
    """In words, for each target, the main scores in which a baseline is at least as good."""
    lines = []
    for modality, methods in summary.items():
        if modality == ALL or SYNTHETIC not in methods or len(methods) == 1:
            continue
        lost = [
            f"{title_of(n)} ({found[0]})"
            for n in CARDS
            if n in methods[SYNTHETIC]
            and (found := best_baseline(methods, n)) is not None
            and better(n) * (methods[SYNTHETIC][n].mean - found[1].mean) <= 0
        ]
        text = (
            f"a baseline is as good or better in {'; '.join(lost)}" if lost else "better than every baseline"
        )
        lines.append(f"{MODALITY_NAMES[modality]}: {text}.")
    return bullets(lines) if lines else ""


def tables(summary: Summary) -> str:
    """HTML: the headline scores, the scores of segmentations if there are any, and every score, folded."""
    names = score_names(summary)
    overlaps = [n for n in names if is_overlap(n)]
    parts = [
        score_table(summary, [n for n in HEADLINES if n in names and not is_overlap(n)], "Scores of images")
    ]
    if overlaps:
        parts.append("<h3>Segmentations of the completed cases</h3>")
        shown = [n for n in OVERLAP_HEADLINES if n in overlaps]
        parts.append(score_table(summary, shown, "Scores of segmentations"))
        everything = score_table(summary, overlaps, "Every score of segmentations")
        parts.append(fold("Every score of segmentations", everything))
    parts.append(
        fold(
            "Every image score", score_table(summary, [n for n in names if n not in overlaps], "Every score")
        )
    )
    parts.append(fold("What the scores are", explanation(names)))
    return "".join(parts)


def score_table(summary: Summary, names: Sequence[str], label: str) -> str:
    """Targets as groups of rows, methods as rows; the best mean of a group in bold. Methods without any score are left out."""
    head = "".join(column_head(n) for n in names)
    body = []
    for modality, methods in _shown(summary).items():
        shown = {m: means for m, means in methods.items() if any(n in means for n in names)}
        if not shown:
            continue
        body.append(f'<tr class="group"><th colspan="{len(names) + 2}">{target_title(modality)}</th></tr>')
        best = {n: _best([means[n].mean for means in shown.values() if n in means], n) for n in names}
        for method, means in shown.items():
            cases = max(means[n].cases for n in names if n in means)
            cells = "".join(_cell(means.get(n), best[n]) for n in names)
            kind = ' class="ours"' if method == SYNTHETIC else ""
            body.append(f"<tr{kind}><th scope='row'>{escape(method)}</th><td>{cases}</td>{cells}</tr>")
    top = f"<thead><tr><th scope='col'>method</th><th scope='col'>cases</th>{head}</tr></thead>"
    return scroll(f"<table>{top}<tbody>{''.join(body)}</tbody></table>", label)


def column_head(name: str) -> str:
    measure, region = split(name)
    arrow, word = ("↓", "lower is better") if better(name) < 0 else ("↑", "higher is better")
    return f'<th scope="col">{escape(title_of(measure))} <abbr title="{word}">{arrow}</abbr><small>{escape(region)}</small></th>'


def _shown(summary: Summary) -> Summary:
    """One target alone needs no rows over all targets."""
    targets = [m for m in summary if m != ALL]
    return {m: summary[m] for m in targets} if len(targets) == 1 else summary


def _best(values: Sequence[float], name: str) -> float | None:
    return max(values, key=lambda v: better(name) * v) if len(values) > 1 else None


def _cell(mean: Mean | None, best: float | None) -> str:
    if mean is None:
        return "<td>–</td>"
    text, _, spread = number(mean).partition(" ± ")
    kind = ' class="best"' if mean.mean == best else ""
    return f"<td{kind}>{text}{f'<small> ± {spread}</small>' if spread else ''}</td>"


def explanation(names: Sequence[str]) -> str:
    measures = list(dict.fromkeys(split(n)[0] for n in names))
    lines = [f"{title_of(m)}: {DESCRIPTIONS[m]}." for m in measures if m in DESCRIPTIONS]
    lines += [
        "± is half of the 95 % confidence interval over cases. Bold: the best mean of a target.",
        "The best copy is chosen with hindsight, for each target, by its MAE on these very cases.",
        "Brain: foreground of the real volume. Tumour: labels above 0 within it; healthy: the rest.",
    ]
    return bullets(lines)

"""Pages are whole, escape what they are given, and open without a network."""

from pathlib import Path

import numpy as np
import pytest

from brasyn_dist.report.charts import chart, colour, series_text
from brasyn_dist.report.page import Section, bullets, cards, facts, fold, legend, note, table, write_page
from brasyn_dist.report.pictures import embed, embed_file
from brasyn_dist.report.style import SERIES, STYLE, VARIABLES
from tests.report.checked import Page, checked


def test_a_page_of_all_parts_is_whole(tmp_path: Path) -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    from PIL import Image

    Image.fromarray(image).save(tmp_path / "wide.png")
    parts = [
        note("a note"),
        cards([("name", "value", "<b>more</b>")]),
        facts({"key": "value"}),
        bullets(["one", "two"]),
        table(["a", "b"], [["x", 1]]),
        fold("title", "content"),
        legend({"first": "var(--s1)"}),
        embed(image, "a black little picture"),
        embed_file(tmp_path / "wide.png", "another black little picture"),
    ]
    write_page(tmp_path / "p.html", "Title", "subtitle", "", [Section("One & two", "".join(parts), "lead")])
    page = checked(tmp_path / "p.html")
    assert page.titles("h1") == ["Title"] and page.titles() == ["One & two"]
    assert {"a note", "value", "key", "one", "content", "lead", "subtitle"} <= {t for _, t in page.texts}


def test_texts_cannot_break_out(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&"\''
    body = note(evil) + facts({evil: evil}) + bullets([evil]) + table([evil], [[evil]]) + fold(evil, "")
    body += (
        embed(np.zeros((2, 2), np.uint8), f"a b {evil}") + legend({evil: "red"}) + cards([(evil, evil, "")])
    )
    body += chart(evil, evil, lambda axes: None)
    write_page(tmp_path / "p.html", evil, evil, "", [Section(evil, body, evil)])
    page = checked(tmp_path / "p.html")
    assert len(page.all("script")) == 1  # the page's own
    assert page.text().count("alert(") >= 12


def test_every_colour_is_defined_for_light_and_dark() -> None:
    for variable in (*VARIABLES, "page", "accent", "tint", "muted", "good", "bad"):
        assert STYLE.count(f"--{variable}:") == 3  # light, dark by the system, dark by hand
    assert set(SERIES) <= set(VARIABLES)


def luminance(colour: str) -> float:
    full = colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:])
    channels = [int(full[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast_is_enough(theme: int) -> None:
    """WCAG 2.1: 4.5 for text, 3 for graphics; on cards and on the page."""
    from brasyn_dist.report import style

    values = dict(
        entry.removeprefix("--").split(":") for entry in (style._LIGHT, style._DARK)[theme].split(";")
    )

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(values[a]), luminance(values[b])))
        return (high + 0.05) / (low + 0.05)

    for text in ("ink", "muted", "accent", "good", "bad"):
        for ground in ("card", "page", "tint"):
            assert contrast(text, ground) >= 4.5, (text, ground)
    for shade in SERIES:
        assert contrast(shade, "card") >= 3, shade


def test_a_chart_takes_the_pages_colours_and_says_what_it_shows() -> None:
    text = chart("Loss", "from 1 to 2", lambda axes: axes.plot([0, 1], [1, 2], color=colour("s2")))
    page = Page(text)
    assert "var(--s2)" in text and "var(--muted)" in text
    assert not any(colour(v) in text for v in VARIABLES)
    (svg,) = page.all("svg")
    assert svg["aria-label"] == "Loss. from 1 to 2" and "viewbox" in svg
    assert ("figcaption", "Loss") in page.texts


def test_charts_are_the_same_every_time_and_share_no_names() -> None:
    def draw(axes) -> None:
        axes.plot([0, 1], [1, 2], "o-", color=colour("s1"))

    assert chart("a", "x", draw) == chart("a", "x", draw)
    names = [{a["id"] for _, a in Page(chart(t, "x", draw)).elements if "id" in a} for t in "ab"]
    assert names[0] and not names[0] & names[1]


def test_series_in_words() -> None:
    assert series_text("loss", [3.0, None, 1.0, float("nan"), 2.0]) == "loss: from 3 to 2, between 1 and 3"  # type: ignore[list-item]
    assert series_text("loss", []) == "loss: no values"

"""Pages are complete, escape all texts, and open without a network."""

from pathlib import Path

import numpy as np
import pytest
from jinja2 import ChoiceLoader, DictLoader

from brasyn_dist.report.charts import VARIABLES, chart, colour, series_text
from brasyn_dist.report.rendering import DARK, LIGHT, SERIES, Card, Picture, Tile, environment, write_html
from tests.report.checked import Page, checked

PARTS = """
{% extends "base.html.j2" %}{% import "macros.html.j2" as m with context %}
{% block opening %}{{ m.cards([card]) }}{% endblock %}
{% block main %}{% call m.section(heading, text) %}
{{ m.note(text) }}{{ m.facts({text: text}) }}{{ m.bullets([text]) }}{{ m.table([text, text], [[text, 1]]) }}
{% call m.fold(text) %}{{ text }}{% endcall %}{{ m.legend({text: "s1"}) }}{{ m.charts([chart]) }}
{{ m.tiles([tile], text) }}{{ m.wide(picture) }}
{% endcall %}{% endblock %}
"""


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that has every part of reports."""
    loader = ChoiceLoader([DictLoader({"parts.html.j2": PARTS.strip()}), environment().loader])  # type: ignore[list-item]
    monkeypatch.setattr(environment(), "loader", loader)


def write_parts(path: Path, text: str) -> Page:
    image = np.zeros((4, 6, 3), np.uint8)
    write_html(
        path,
        "parts.html.j2",
        title=text,
        subtitle=text,
        heading=f"One & two {text}",
        text=text,
        card=Card(text, text, text, text),
        chart=chart(text, text, lambda axes: None),
        tile=Tile.of(image, text, f"a black picture {text}"),
        picture=Picture.of(image, f"another black picture {text}"),
    )
    return checked(path)


def test_a_page_of_all_parts_is_complete(tmp_path: Path, parts: None) -> None:
    page = write_parts(tmp_path / "p.html", "words")
    assert page.titles("h1") == ["words"] and page.titles() == ["One & two words"]
    assert {"href": "#one---two-words"} in page.all("a")
    texts = {tag for tag, text in page.texts if text == "words"}
    assert {"p", "dt", "dd", "li", "th", "summary", "details", "figcaption", "h4", "span", "div"} <= texts


def test_texts_cannot_break_out(tmp_path: Path, parts: None) -> None:
    page = write_parts(tmp_path / "p.html", '<script>alert("x")</script>&"\'')
    assert len(page.all("script")) == 1  # the page's own
    assert page.text().count("alert(") >= 12


def test_an_unknown_value_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="undefined"):
        write_html(tmp_path / "p.html", "training.html.j2", title="t")
    assert not (tmp_path / "p.html").exists()


def test_every_colour_is_defined_for_light_and_dark(tmp_path: Path, parts: None) -> None:
    write_parts(tmp_path / "p.html", "x")
    source = (tmp_path / "p.html").read_text()
    for variable in (*VARIABLES, "page", "accent", "tint", "muted", "good", "bad"):
        assert source.count(f"--{variable}:") == 3  # light, dark by the system, dark by hand
    assert set(SERIES) <= set(VARIABLES) and set(LIGHT) == set(DARK)


def luminance(colour: str) -> float:
    full = colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:])
    channels = [int(full[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_is_enough(theme: dict[str, str]) -> None:
    """WCAG 2.1: 4.5 for text, 3 for graphics; on cards and on the page."""

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(theme[a]), luminance(theme[b])))
        return (high + 0.05) / (low + 0.05)

    for text in ("ink", "muted", "accent", "good", "bad"):
        for ground in ("card", "page", "tint"):
            assert contrast(text, ground) >= 4.5, (text, ground)
    for shade in SERIES:
        assert contrast(shade, "card") >= 3, shade


def test_a_chart_has_the_colours_of_the_page_and_a_description() -> None:
    made = chart("Loss", "from 1 to 2", lambda axes: axes.plot([0, 1], [1, 2], color=colour("s2")))
    page = Page(made.svg)
    assert "var(--s2)" in made.svg and "var(--muted)" in made.svg
    assert not any(colour(v) in made.svg for v in VARIABLES)
    (svg,) = page.all("svg")
    assert svg["aria-label"] == "Loss. from 1 to 2" and "viewbox" in svg and made.title == "Loss"


def test_charts_are_reproducible_and_share_no_names() -> None:
    def plot(axes) -> None:
        axes.plot([0, 1], [1, 2], "o-", color=colour("s1"))

    assert chart("a", "x", plot) == chart("a", "x", plot)
    names = [{a["id"] for _, a in Page(chart(t, "x", plot).svg).elements if "id" in a} for t in "ab"]
    assert names[0] and not names[0] & names[1]


def test_series_in_words() -> None:
    assert series_text("loss", [3.0, None, 1.0, float("nan"), 2.0]) == "loss: from 3 to 2, between 1 and 3"  # type: ignore[list-item]
    assert series_text("loss", []) == "loss: no values"

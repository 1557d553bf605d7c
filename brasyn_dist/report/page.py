"""HTML by small functions: texts go in as they are and are escaped here; what a function returns is HTML."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brasyn_dist.common.files import atomic_write_text
from brasyn_dist.report.style import SCRIPT, STYLE

NOT_CLINICAL = (
    "Research use only, not for clinical use: a synthetic sequence shows what is likely, not what is there."
)


@dataclass(frozen=True)
class Section:
    """A titled part of a page, with an entry in its navigation."""

    title: str
    body: str
    """HTML."""
    lead: str = ""
    """One or two sentences under the title."""

    @property
    def anchor(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


def escape(text: object) -> str:
    return html.escape(str(text))


def write_page(path: Path, title: str, subtitle: str, opening: str, sections: Sequence[Section]) -> None:
    """Write the whole file, atomically. `opening` is HTML above the sections."""
    entries = "".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections)
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f'<header class="top"><h1>{escape(title)}</h1><p class="note">{escape(subtitle)}</p>'
        '<button id="theme" type="button" aria-label="Switch between light and dark">◐</button></header>',
        f'<nav aria-label="Sections"><ul>{entries}</ul></nav>',
        f"<main>{opening}",
        *(_section(s) for s in sections),
        f"</main><footer>{escape(NOT_CLINICAL)}</footer><script>{SCRIPT}</script></body></html>\n",
    ]
    atomic_write_text(path, "\n".join(parts))


def _section(section: Section) -> str:
    lead = f'<p class="note">{escape(section.lead)}</p>' if section.lead else ""
    return (
        f'<section id="{section.anchor}" aria-labelledby="{section.anchor}-title">'
        f'<h2 id="{section.anchor}-title">{escape(section.title)}</h2>{lead}{section.body}</section>'
    )


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def cards(entries: Iterable[tuple[str, str, str]]) -> str:
    """(name, value, HTML of a line below) as a row of cards."""
    boxes = (
        f'<div class="card"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="more">{more}</div></div>'
        for name, value, more in entries
    )
    return f'<div class="cards">{"".join(boxes)}</div>'


def facts(values: Mapping[str, object]) -> str:
    """A list of names and values."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in values.items()) + "</dl>"


def bullets(texts: Iterable[str]) -> str:
    return '<ul class="note">' + "".join(f"<li>{escape(t)}</li>" for t in texts) + "</ul>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], text_columns: int = 1) -> str:
    """A plain table that scrolls by itself; the first columns are texts, the rest numbers."""

    def cell(tag: str, number: int, value: object) -> str:
        kind = ' class="text"' if number < text_columns else ""
        return f"<{tag}{kind}>{escape(value)}</{tag}>"

    top = "".join(cell("th", n, h) for n, h in enumerate(head))
    body = "".join(
        "<tr>" + "".join(cell("td" if n else "th", n, v) for n, v in enumerate(row)) + "</tr>" for row in rows
    )
    return scroll(f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>", "Table")


def scroll(content: str, name: str) -> str:
    """Content that may be wider than the page; reachable by keyboard."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{content}</div>'


def fold(title: str, content: str, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>{content}</details>"


def legend(entries: Mapping[str, str]) -> str:
    """Names with the colours (CSS) that they have in charts."""
    items = "".join(
        f'<li><i style="background:{colour}"></i>{escape(name)}</li>' for name, colour in entries.items()
    )
    return f'<ul class="legend">{items}</ul>'

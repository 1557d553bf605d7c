"""An HTML page taken apart by the standard library's parser, and what holds for every report."""

import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "input", "br", "hr", "link"}


class Page(HTMLParser):
    """Elements with their attributes, texts by enclosing element; raises AssertionError where tags are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self) -> str:
        return " ".join(text for tag, text in self.texts if tag not in ("style", "script"))

    def titles(self, tag: str = "h2") -> list[str]:
        return [text for name, text in self.texts if name == tag]


def checked(path: Path) -> Page:
    """The page in a file, checked: whole, self-contained, described, its links and names in order."""
    source = path.read_text()
    page = Page(source)
    assert source.startswith("<!doctype html>") and page.all("html") == [{"lang": "en"}]
    assert any("width=device-width" in m.get("content", "") for m in page.all("meta"))
    assert not re.search(r"https?://|//cdn|@import", source)
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "poster", "data"):
                assert value.startswith(("#", "data:image/")), f"<{tag} {name}={value[:60]}>"
    for target in re.findall(r"url\(([^)]*)\)", source):
        assert target.strip("'\"").startswith("#"), target
    for image in page.all("img"):
        assert len(image["alt"].split()) >= 3, image["alt"]
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and svg["aria-label"])
    names = [a["id"] for _, a in page.elements if "id" in a]
    assert len(names) == len(set(names)), sorted(n for n in set(names) if names.count(n) > 1)
    for tag, attributes in page.elements:
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#")[1:] in ["", *names] or tag == "img", attributes
    for reference in re.findall(r"url\(#([^)]*)\)", source):
        assert reference in names
    return page

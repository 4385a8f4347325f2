"""A report's page read back as a browser would."""

import re
from html.parser import HTMLParser
from pathlib import Path

from ablate import report
from ablate.records import StudyView

VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """What is on a page: tags, attributes, text, tables by caption, identifiers and links."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"
        if tag == "table":
            self.tables.setdefault(self._caption, self._rows)

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if "caption" in self.open:
            self._caption += data
        elif "td" in self.open or "th" in self.open:
            self._rows[-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.words)

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def written(view: StudyView, folder: Path) -> tuple[dict[str, Path], Page]:
    paths = report.write(view, folder)
    return paths, Page(paths["HTML report"].read_text(encoding="utf-8"))


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"[+-]?\d+(?:\.\d+)?", text.replace("−", "-").replace(",", ""))]


def columns(page: Page, part: str) -> dict[str, dict[str, str]]:
    """The contrast table of the page: arm to title to text."""
    (rows,) = (rows for caption, rows in page.tables.items() if caption.endswith(f": {part}"))
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}

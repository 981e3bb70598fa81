"""Numbers of the benchmark in markdown pages: written there from the kept summaries.

A page says by a comment what it wants, on a line of its own for a table ::

    <!-- benchmark: vild rows=vild_text,vild metrics=AP_base,AP_novel -->
    | model | seeds | AP_base | AP_novel |
    ...
    <!-- end -->

(without ``rows`` or ``metrics``: all of the family), or within a line for one mean ::

    ... reaches <!-- benchmark: vild row=vild metric=AP_novel -->7.5<!-- end -->, which ...
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovd_d2.benchmarks.recipes.families import FAMILIES
from ovd_d2.benchmarks.recipes.seeds import cell, columns, markdown_table
from ovd_d2.benchmarks.recipes.summaries import metrics_of, read_summaries, seconds_of
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import atomic_write

END = "<!-- end -->"
REMEDY = "run `ovd benchmark tables`"
_BLOCK = re.compile(r"<!-- benchmark: (?P<what>[^\n]*?) -->(?P<text>.*?)<!-- end -->", re.DOTALL)
_START = "<!-- benchmark:"

Summaries = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Difference:
    """A place where a page does not say what the summaries say.

    Attributes:
        page: relative to the checkout.
        row: title of the row, or its name and the metric.
    """

    page: str
    row: str


def marked_pages(root: Path) -> list[Path]:
    """The pages of the checkout ``root`` that hold numbers of the benchmark."""
    pages = [root / "README.md", root / "configs/README.md", *sorted((root / "docs").rglob("*.md"))]
    return [p for p in pages if p.is_file() and _START in p.read_text(encoding="utf-8")]


def update_pages(root: Path, *, write: bool) -> list[Difference]:
    """Writes the numbers of all pages of ``root``, or only looks whether they are right.

    Returns:
        what differed before.

    Raises:
        OVDError: a comment asks for what no summary has, or has no end.
    """
    summaries, differences = read_summaries(root), []
    texts: dict[Path, str] = {}
    for page in marked_pages(root):
        name = str(page.relative_to(root))
        before = page.read_text(encoding="utf-8")
        texts[page] = filled(before, summaries, name, differences)
    for page, text in texts.items() if write else ():
        if text != page.read_text(encoding="utf-8"):
            with atomic_write(page) as file:
                file.write(text.encode())
    return differences


def filled(text: str, summaries: Summaries, page: str, differences: list[Difference]) -> str:
    """``text`` of the page called ``page`` with its numbers from ``summaries``; what differed
    comes to ``differences``.

    Raises:
        OVDError: as :func:`update_pages`.
    """
    blocks = list(_BLOCK.finditer(text))
    if len(blocks) != text.count(_START) or any(_START in block["text"] for block in blocks):
        raise OVDError(f'{page}: a comment "{_START} ..." has no "{END}": add it.')

    def fill(match: re.Match) -> str:
        at_line_start = match.start() == 0 or text[match.start() - 1] == "\n"
        asked = _Asked.read(match["what"], summaries, page)
        new = asked.one() if asked.metric else f"\n{asked.table()}"
        if asked.metric and at_line_start:
            raise OVDError(
                f'{page}: the comment "benchmark: {match["what"]}" begins a line, where it would '
                "end the paragraph: put a word before it."
            )
        if new != match["text"]:
            rows = [f"{asked.rows[0]}: {asked.metric}"] if asked.metric else []
            differences.extend(
                Difference(page, row) for row in rows or _differing(match["text"], new)
            )
        return f"{_START} {match['what']} -->{new}{END}"

    return _BLOCK.sub(fill, text)


def told(differences: list[Difference], shown: int = 4) -> list[str]:
    """A text per page: its name, and of the rows that differ the first ``shown``."""
    pages: dict[str, list[str]] = {}
    for one in differences:
        pages.setdefault(one.page, []).append(f'"{one.row}"')
    texts = []
    for page, rows in pages.items():
        more = f" and {len(rows) - shown} more" if len(rows) > shown else ""
        texts.append(f"{page}, row {', '.join(rows[:shown])}{more}")
    return texts


def _differing(before: str, after: str) -> list[str]:
    """The first cells of the lines that are in one of two tables alone."""
    old, new = (text.strip("\n").splitlines() for text in (before, after))
    lines = [line for line in new if line not in old] + [line for line in old if line not in new]
    cells = [[*line.split("|"), ""][1].strip() or line.strip() for line in lines]
    return [cell for cell in dict.fromkeys(cells) if cell != "---"] or ["(their order)"]


@dataclass(frozen=True)
class _Asked:
    """What a comment asks for."""

    family: str
    summary: Mapping[str, Any]
    rows: tuple[str, ...]
    metrics: tuple[str, ...]
    metric: str = ""  # one value alone

    @classmethod
    def read(cls, what: str, summaries: Summaries, page: str) -> "_Asked":
        family, *words = what.split()
        where = f'{page}, "benchmark: {what}"'
        if family not in summaries:
            raise OVDError(f"{where}: families with a summary are {', '.join(summaries)}.")
        options = dict(word.partition("=")[::2] for word in words)
        single = {"row", "metric"} == set(options)
        if not single and (unknown := set(options) - {"rows", "metrics"}):
            raise OVDError(
                f"{where}: {', '.join(sorted(unknown))} is not understood; write rows=A,B and "
                "metrics=A,B, or row=A metric=B for one number."
            )
        summary = summaries[family]
        tasks = FAMILIES[family].tasks
        known = columns({name: metrics_of(row, tasks) for name, row in summary["rows"].items()})

        def chosen(key: str, names: list[str]) -> tuple[str, ...]:
            picked = options[key].split(",") if key in options else names
            if wrong := [name for name in picked if name not in names]:
                raise OVDError(f"{where}: no {', '.join(wrong)} among {', '.join(names)}.")
            return tuple(picked)

        plural = "" if single else "s"
        rows = chosen(f"row{plural}", list(summary["rows"]))
        metrics = chosen(f"metric{plural}", known)
        if single and len(rows) + len(metrics) != 2:
            raise OVDError(f"{where}: name one row and one metric.")
        return cls(family, summary, rows, metrics, metrics[0] if single else "")

    def _values(self, name: str) -> dict[str, Any]:
        return metrics_of(self.summary["rows"][name], FAMILIES[self.family].tasks)

    def one(self) -> str:
        """A mean with one decimal."""
        value = self._values(self.rows[0]).get(self.metric) or {"mean": None}
        return cell({**value, "min": value["mean"], "max": value["mean"]})

    def table(self) -> str:
        """Title, seeds and metrics of every row; of some families seconds, too."""
        titled = {}
        for name in self.rows:
            row, values = self.summary["rows"][name], self._values(name)
            facts: dict[str, Any] = {"seeds": str(row["seeds"])}
            facts |= {metric: values[metric] for metric in self.metrics if metric in values}
            if FAMILIES[self.family].seconds:
                seconds = seconds_of(row)
                facts["seconds"] = "-" if seconds is None else f"{seconds:.0f}"
            titled[row["title"]] = facts
        return markdown_table(titled)

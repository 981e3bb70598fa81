"""The picture of a family of rows, docs/images/benchmark_FAMILY.png.

A PNG carries the numbers that it shows as its comment. So it is drawn again when they change, and
not when another machine has other fonts.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovd_d2.benchmarks.recipes.families import FAMILIES
from ovd_d2.benchmarks.recipes.seeds import cell
from ovd_d2.benchmarks.recipes.summaries import metrics_of, read_summaries
from ovd_d2.files.atomic import atomic_write


def figure_file(family: str, root: Path) -> Path:
    """Where the picture of a family lies in the checkout ``root``."""
    return root / f"docs/images/benchmark_{family}.png"


def update_figures(root: Path, *, write: bool) -> list[str]:
    """Draws the pictures whose numbers are not those of the summaries, or only looks.

    Returns:
        the pictures that were missing or showed other numbers, relative to ``root``.
    """
    outdated = []
    for name, summary in read_summaries(root).items():
        file, family = figure_file(name, root), FAMILIES[name]
        if family.of_demo:  # it has a picture of its own
            continue
        rows = {row["title"]: metrics_of(row, family.tasks) for row in summary["rows"].values()}
        note = shown_numbers(rows, family.bars)
        if note == comment_of(file):
            continue
        outdated.append(str(file.relative_to(root)))
        if write:
            from ovd_d2.visualization.training_plots import plot_average_precision

            picture = io.BytesIO()
            plot_average_precision(
                rows, summary["dataset"], picture, family.bars, what=family.what, note=note
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as out:
                out.write(picture.getvalue())
    return outdated


def shown_numbers(rows: Mapping[str, Mapping[str, Any]], bars: tuple[str, ...]) -> str:
    """What a picture shows, a line per row: its title, and each bar as in a table."""
    return "\n".join(
        f"{title}: " + ", ".join(f"{bar} {cell(metrics.get(bar))}" for bar in bars)
        for title, metrics in rows.items()
    )


def comment_of(file: Path) -> str | None:
    """The comment of a PNG; None if there is no such file, or nothing readable."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            picture.load()
            return picture.info.get("Comment")
    except OSError:
        return None

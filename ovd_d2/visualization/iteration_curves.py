"""AP against the iterations a detector has been trained for, of trainings of several lengths."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

from ovd_d2.errors import OVDError

from .training_plots import LINE_COLOURS, new_figure

PANELS = {"AP_base": "base categories", "AP_novel": "novel categories"}


def plot_iterations(
    rows: Iterable[Mapping[str, Any]],
    dataset_name: str,
    file: str | os.PathLike | BinaryIO,
    note: str = "",
) -> None:
    """Draws AP_base and AP_novel against iterations, a panel each; a line joins the means of
    a curve's trainings, a band spans their range over seeds.

    Args:
        rows: of a summary of ``ovd benchmark``; those with "curve" (name of the line) and
            "iterations" are drawn.
        dataset_name: what they were evaluated on.
        file: the PNG to write.
        note: kept in the PNG as its comment.

    Raises:
        OVDError: no row belongs to a curve.
    """
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if "curve" in row:
            curves.setdefault(row["curve"], []).append(row)
    if not curves:
        raise OVDError("No row has a curve, so none can be drawn: train rkd_heads_... rows.")
    figure = new_figure(8.4, 3.9)
    for axes, (metric, title) in zip(figure.subplots(1, 2), PANELS.items()):
        for i, (name, points) in enumerate(curves.items()):
            found = {row["iterations"]: row["box"][metric] for row in points}
            at = sorted(k for k, value in found.items() if value["mean"] is not None)
            mean, low, high = ([found[k][part] for k in at] for part in ("mean", "min", "max"))
            colour = LINE_COLOURS[i % len(LINE_COLOURS)]
            axes.plot(at, mean, color=colour, label=name, marker="o", markersize=4)
            if len(at) > 1:
                axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
            else:
                axes.vlines(at, low, high, color=colour)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("iterations since the base detector", fontsize=9)
        axes.set_ylabel(f"{metric} in percent on {dataset_name}", fontsize=9)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(file, format="png", metadata={"Software": None, "Comment": note or None})

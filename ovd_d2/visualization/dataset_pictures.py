"""Pictures of labelled data: a sheet of images with their boxes, and a chart of its classes."""

import math
import os
from collections.abc import Mapping

import numpy as np
import torch

from ovd_d2.errors import OVDError
from ovd_d2.files.images import read_image

from .training_plots import BASE_COLOUR, NOVEL_COLOUR, draw_panel, ground_truth, new_figure

_COLUMNS = 6
_BARS = 60  # classes at most; those of most boxes


def draw_samples(dataset_name: str, file: str | os.PathLike, *, num_images: int = 24) -> None:
    """Draws images with their boxes and names, spread evenly over the data set.

    Args:
        dataset_name: a registered data set with ``thing_classes``.
        file: the picture to write.
        num_images: at most.

    Raises:
        OVDError: it has no image.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from ovd_d2.data.named_datasets import check_registered

    check_registered("draw_samples", [dataset_name])
    records = DatasetCatalog.get(dataset_name)
    names: list[str] = MetadataCatalog.get(dataset_name).thing_classes
    if not records:
        raise OVDError(f"Data set {dataset_name} has no image to draw.")
    records = sorted(records, key=lambda record: not record["annotations"])  # empty ones last
    picks = np.linspace(0, len(records) - 1, min(num_images, len(records)))
    columns = min(_COLUMNS, len(picks))
    rows = math.ceil(len(picks) / columns)
    figure = new_figure(2.4 * columns, 2.4 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    none_novel = torch.zeros(len(names), dtype=torch.bool)
    for axes, pick in zip(grid.flat, picks.round().astype(int)):
        truth = ground_truth(records[pick])
        image = read_image(records[pick]["file_name"])
        draw_panel(axes, image, truth, truth, names, none_novel)
    for axes in grid.flat[len(picks) :]:
        axes.set_visible(False)
    figure.savefig(file)


def plot_class_counts(counts: Mapping[str, tuple[int, int]], file: str | os.PathLike) -> None:
    """Draws how many boxes each class has in training and in validation.

    Args:
        counts: name to (boxes in training, boxes in validation), at least one class.
        file: the picture to write.
    """
    shown = sorted(counts.items(), key=lambda item: -item[1][0])[:_BARS]
    figure = new_figure(7.0, 0.26 * len(shown) + 1.3)
    axes = figure.subplots()
    places = np.arange(len(shown))
    start = np.zeros(len(shown))
    titles = ("training", "validation")
    for title, colour, number in zip(titles, (BASE_COLOUR, NOVEL_COLOUR), range(2)):
        values = np.array([both[number] for _, both in shown])
        bars = axes.barh(places, values, left=start, color=colour, label=title)
        axes.bar_label(bars, [str(v) if v else "" for v in values], label_type="center", fontsize=7)
        start = start + values
    axes.set_yticks(places, [name for name, _ in shown], fontsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    more = f", the {_BARS} most frequent of {len(counts)} classes" if len(counts) > _BARS else ""
    axes.set_xlabel(f"boxes{more}", fontsize=9)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(file)

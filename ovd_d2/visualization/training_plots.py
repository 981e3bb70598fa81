"""Pictures of training runs and detections, drawn with matplotlib, without a display."""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torchvision.ops import box_convert, box_iou, nms

from ovd_d2.errors import OVDError
from ovd_d2.files.images import read_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Okabe and Ito's palette: told apart by colour-blind readers too.
BASE_COLOUR, NOVEL_COLOUR = "#56B4E9", "#E69F00"
BAR_COLOURS = (BASE_COLOUR, NOVEL_COLOUR, "#009E73", "#CC79A7")
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
OVERLAP_THRESHOLD = (
    0.5  # IoU above which a lower-scored box is not drawn, and a box counts as right
)


@dataclass(frozen=True)
class Boxes:
    """Labelled boxes of one image.

    Attributes:
        boxes: (R, 4) float, absolute x0 y0 x1 y1 in the image as stored on disk.
        classes: (R,) int64, indices into the data set's ``thing_classes``.
        scores: (R,) float in 0..1, or None for ground truth.
    """

    boxes: torch.Tensor
    classes: torch.Tensor
    scores: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)


def plot_loss_curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]], file: str | os.PathLike
) -> None:
    """Draws every loss against the iteration, one panel per loss, one line per run.

    Args:
        runs: title to the records of Detectron2's metrics.json, see
            :func:`ovd_d2.benchmarks.recipes.run_folder.read_metrics`.
        file: the PNG to write.

    Raises:
        OVDError: no run has recorded a loss.
    """
    is_loss = ("total_loss", "loss_")
    names = {
        key for records in runs.values() for r in records for key in r if key.startswith(is_loss)
    }
    if not names:
        raise OVDError(f"No run has recorded a loss yet, so {file} cannot be drawn.")
    ordered = sorted(names, key=lambda name: (name != "total_loss", name))
    columns = min(3, len(ordered))
    rows = math.ceil(len(ordered) / columns)
    figure = new_figure(4.2 * columns, 2.9 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, name in zip(grid.flat, ordered):
        for colour, (title, records) in zip(_cycle(LINE_COLOURS), runs.items()):
            points = [(r["iteration"], r[name]) for r in records if name in r and "iteration" in r]
            if points:
                x, y = zip(*points)
                axes.plot(x, y, color=colour, label=title, linewidth=1.5, marker=".", markersize=3)
        axes.set_title(name, fontsize=10)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.set_xlabel("iteration", fontsize=8)
        axes.tick_params(labelsize=8)
    for axes in grid.flat[len(ordered) :]:
        axes.set_visible(False)
    handles = {h.get_label(): h for axes in grid.flat for h in axes.get_lines()}
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False
    )
    figure.savefig(file)


def plot_average_precision(
    models: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    dataset_name: str,
    file: "str | os.PathLike | BinaryIO",
    metrics: Sequence[str] = ("AP_base", "AP_novel"),
    *,
    what: str = "box AP",
    note: str = "",
) -> None:
    """Draws metrics as bars side by side, such as AP on base and on novel categories, per model.

    Args:
        models: title to :func:`ovd_d2.benchmarks.recipes.seeds.mean_and_spread`; lines span
            the range.
        dataset_name: what they were evaluated on; for the caption.
        file: the PNG to write.
        metrics: a bar each; of models without a value it is empty.
        what: the bars are, in percent; for the caption.
        note: a text that the PNG carries as its comment.
    """
    figure = new_figure(8.0, 0.62 * len(models) + 1.1)
    axes = figure.subplots()
    unknown = {"mean": None, "min": None, "max": None}
    thickness = 0.8 / len(metrics)
    for row, (key, colour) in enumerate(zip(metrics, _cycle(BAR_COLOURS))):
        found = [values.get(key, unknown) for values in models.values()]
        values = np.array([[one[part] or 0.0 for part in ("mean", "min", "max")] for one in found])
        mean, low, high = values.T
        heights = [index + thickness * row for index in range(len(models))]
        spans = np.stack([mean - low, high - mean]) if (high > low).any() else None
        bars = axes.barh(
            heights, mean, xerr=spans, height=0.95 * thickness, color=colour, label=key
        )
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
    middle = thickness * (len(metrics) - 1) / 2
    axes.set_yticks([index + middle for index in range(len(models))], list(models))
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"{what} in percent on {dataset_name}", fontsize=9)
    figure.legend(loc="outside upper center", ncols=len(metrics), frameon=False)
    figure.savefig(file, format="png", metadata={"Software": None, "Comment": note or None})


def draw_comparison(
    dataset_name: str,
    predictions: Mapping[str, str | os.PathLike],
    file: str | os.PathLike,
    *,
    num_images: int = 6,
    only_novel: bool = True,
) -> None:
    """Draws the ground truth and each model's detections side by side, one row per image.

    Nothing is hand-picked: the images are the first ``num_images`` by id that show a novel object,
    or any object at all.
    Of each model the n highest-scored detections are drawn, n being the number of objects in the
    image, after boxes that overlap a better one by more than 0.5 IoU are dropped whatever their
    class. Solid: right name and IoU of at least 0.5; dashed: wrong.

    Args:
        dataset_name: a registered data set whose metadata has ``thing_classes`` and ``is_novel``.
        predictions: title to a results json (``lvis_instances_results.json`` or
            ``coco_instances_results.json``) for that data set.
        file: the PNG to write.
        num_images: rows.
        only_novel: images need a novel object.

    Raises:
        OVDError: a file is missing or unreadable, or the data set has no image with a novel object.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from ovd_d2.data.named_datasets import check_registered

    check_registered("draw_comparison", [dataset_name])
    records = DatasetCatalog.get(dataset_name)  # may set the metadata
    metadata = MetadataCatalog.get(dataset_name)
    names: list[str] = metadata.thing_classes
    is_novel = torch.tensor(metadata.get("is_novel", [False] * len(names)))
    wanted_classes = is_novel if only_novel else torch.ones_like(is_novel)
    records = [record for record in records if _shows(record, wanted_classes)]
    records = sorted(records, key=lambda record: record["image_id"])[:num_images]
    if not records:
        what = "a novel object" if only_novel else "an object"
        raise OVDError(f"Data set {dataset_name} has no image with {what} to draw.")
    to_index = metadata.get("thing_dataset_id_to_contiguous_id") or {
        k + 1: k for k in range(len(names))
    }
    wanted = {record["image_id"] for record in records}
    found = {
        title: _read_predictions(path, wanted, to_index) for title, path in predictions.items()
    }
    columns = 1 + len(predictions)
    figure = new_figure(2.9 * columns, 3.05 * len(records) + 0.7)
    grid = figure.subplots(len(records), columns, squeeze=False)
    for row, record in zip(grid, records):
        truth = ground_truth(record)
        image = read_image(record["file_name"])
        draw_panel(row[0], image, truth, truth, names, is_novel)
        for axes, title in zip(row[1:], predictions):
            detections = _best(found[title].get(record["image_id"]), len(truth))
            draw_panel(axes, image, detections, truth, names, is_novel)
    for axes, title in zip(grid[0], ["ground truth", *predictions]):
        axes.set_title(title, fontsize=11)
    _add_legend(figure, base_and_novel=bool(is_novel.any()))
    figure.savefig(file)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _cycle(colours: Sequence[str]) -> Any:
    import itertools

    return itertools.cycle(colours)


def _shows(record: Mapping[str, Any], classes: torch.Tensor) -> bool:
    return any(bool(classes[a["category_id"]]) for a in record["annotations"])


def ground_truth(record: Mapping[str, Any]) -> Boxes:
    """The annotations of a record in Detectron2's format."""
    from detectron2.structures import BoxMode

    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]
    ]
    classes = [a["category_id"] for a in record["annotations"]]
    return Boxes(torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor(classes))


def _read_predictions(
    path: str | os.PathLike, wanted: set[int], to_index: Mapping[int, int]
) -> dict[int, Boxes]:
    """Image id to its boxes, for the ids ``wanted``."""
    try:
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
        by_image: dict[int, list[dict[str, Any]]] = {}
        for result in results:
            if result["image_id"] in wanted:
                by_image.setdefault(result["image_id"], []).append(result)
        return {
            image_id: Boxes(
                box_convert(torch.tensor([r["bbox"] for r in rows]).float(), "xywh", "xyxy"),
                torch.tensor([to_index[r["category_id"]] for r in rows]),
                torch.tensor([float(r["score"]) for r in rows]),
            )
            for image_id, rows in by_image.items()
        }
    except OSError as error:
        raise OVDError(f"The predictions {path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise OVDError(
            f"{path} is not a list of LVIS or COCO results for this data set ({error!r}): "
            "evaluate the model again."
        ) from error


def _best(detections: Boxes | None, count: int) -> Boxes:
    """The ``count`` highest-scored boxes left by class-agnostic non-maximum suppression."""
    if detections is None:
        return Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    keep = nms(detections.boxes, detections.scores, OVERLAP_THRESHOLD)[:count]
    return Boxes(detections.boxes[keep], detections.classes[keep], detections.scores[keep])


def draw_panel(
    axes: "Axes",
    image: np.ndarray,
    shown: Boxes,
    truth: Boxes,
    names: Sequence[str],
    is_novel: torch.Tensor,
) -> None:
    """Draws boxes into an image.

    Args:
        axes: to draw on.
        image: (H, W, 3) uint8, RGB.
        shown: the boxes to draw.
        truth: of the image; boxes that are none of these are dashed.
        names: of the K classes.
        is_novel: (K,) bool, which decides about colours.
    """
    from matplotlib.patches import Rectangle

    axes.imshow(image)
    axes.set_xticks([])
    axes.set_yticks([])
    right = _is_right(shown, truth)
    label_height = image.shape[0] * 0.06
    for i in range(len(shown)):
        x0, y0, x1, y1 = shown.boxes[i].tolist()
        k = int(shown.classes[i])
        colour = NOVEL_COLOUR if is_novel[k] else BASE_COLOUR
        style = "-" if right[i] else (0, (3, 2))
        axes.add_patch(
            Rectangle(
                (x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.8,
                linestyle=style,
            )
        )  # fmt: skip
        text = names[k].replace("_", " ")
        text += "" if shown.scores is None else f" {shown.scores[i]:.2f}"
        # Inside the picture: above the box where there is room, else at its upper edge; boxes far
        # right have their label end with them.
        to_the_left = x0 > image.shape[1] * 0.6
        axes.text(
            min(x1, image.shape[1]) if to_the_left else max(x0, 0),
            max(y0, label_height),
            text,
            horizontalalignment="right" if to_the_left else "left",
            fontsize=6.5,
            verticalalignment="bottom",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
            clip_on=True,
        )


def _is_right(shown: Boxes, truth: Boxes) -> torch.Tensor:
    """(R,) bool: some true box of the same class has an IoU of at least 0.5."""
    if not len(shown) or not len(truth):
        return torch.zeros(len(shown), dtype=torch.bool)
    same = shown.classes[:, None] == truth.classes[None, :]
    return ((box_iou(shown.boxes, truth.boxes) >= OVERLAP_THRESHOLD) & same).any(dim=1)


def _add_legend(figure: "Figure", *, base_and_novel: bool) -> None:
    from matplotlib.patches import Patch

    kinds = [
        Patch(facecolor=BASE_COLOUR, label="base category"),
        Patch(facecolor=NOVEL_COLOUR, label="novel category"),
    ]
    handles = [
        *(kinds if base_and_novel else []),
        Patch(facecolor="none", edgecolor="black", label="right name and box"),
        Patch(facecolor="none", edgecolor="black", linestyle=(0, (3, 2)), label="wrong"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9)

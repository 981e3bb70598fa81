"""Splits of the class list that open-vocabulary results are reported on, their table, and results
of several processes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.utils import comm
from tabulate import tabulate

from ovd_d2.errors import OVDError


def novel_mask(
    metadata: Any, num_classes: int, is_novel: Sequence[bool] | None = None
) -> np.ndarray | None:
    """(K,) bool: ``is_novel``, or ``metadata.is_novel``; None if neither says.

    Args:
        metadata: a data set's Detectron2 ``Metadata``.
        num_classes: K, which ``is_novel`` must match.
        is_novel: instead of the metadata's; None to take those.

    Raises:
        OVDError: the lengths differ.
    """
    is_novel = metadata.get("is_novel") if is_novel is None else is_novel
    if is_novel is None:
        return None
    if len(is_novel) != num_classes:
        raise OVDError(
            f"The metadata of data set '{metadata.name}' marks {len(is_novel)} classes in "
            f"is_novel, but its annotation file has {num_classes} categories: they must agree."
        )
    return np.asarray(is_novel, dtype=bool)


def check_predicted_classes(largest: int, num_classes: int, dataset_name: str) -> None:
    """Raises an ``OVDError`` for a class index that the data set does not have."""
    if largest >= num_classes:
        raise OVDError(
            f"The model predicts class {largest} but data set '{dataset_name}' has {num_classes} "
            "classes: give the model this data set's vocabulary "
            f"(MODEL.OPEN_VOCAB.VOCABULARY 'dataset:{dataset_name}', or set_vocabulary)."
        )


def results_table(
    rows: Mapping[str, Mapping[str, float]], columns: Sequence[str], *, of: str = "classes"
) -> str:
    """An aligned text table: one line per split, one column per metric, "-" for no value or nan.

    Args:
        rows: split name to {column: value}; a missing column is left empty.
        columns: in this order.
        of: heading of the first column, what the splits are of.
    """

    def cell(value: float | int | None) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "-"
        return str(value) if isinstance(value, int) else f"{value:.2f}"

    lines = [[name, *(cell(row.get(c)) for c in columns)] for name, row in rows.items()]
    return tabulate(
        lines,
        headers=[of, *columns],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left", *("right" for _ in columns)),
    )


def of_all_processes(found: Any, distributed: bool) -> list[Any] | None:
    """``found`` of every process in the order of ranks, on the main process; None on the others.
    Every process must call it, unless not ``distributed``."""
    if not distributed:
        return [found]
    comm.synchronize()
    gathered = comm.gather(found, dst=0)
    return gathered if comm.is_main_process() else None


def every_image(
    found: Mapping[Any, Any], images: Iterable[Any], dataset_name: str, distributed: bool
) -> dict[Any, Any] | None:
    """What all processes have ``found`` by image_id, on the main process; None on the others.
    Of an image that two have seen the first one's counts.

    Args:
        found: of this process.
        images: every image_id of the data set.
        dataset_name: for the message.
        distributed: see :func:`of_all_processes`.

    Raises:
        OVDError: an image was not predicted.
    """
    gathered = of_all_processes(found, distributed)
    if gathered is None:
        return None
    joined: dict[Any, Any] = {}
    for of_process in gathered:
        joined = {**of_process, **joined}
    images = list(images)
    missing = [image_id for image_id in images if image_id not in joined]
    if missing:
        raise OVDError(
            f"{len(missing)} of {len(images)} images of '{dataset_name}' have no prediction, such "
            f"as that with image_id {missing[0]!r}: predict all of it."
        )
    return joined

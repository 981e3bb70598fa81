"""Box proposer that reads results files of COCO and LVIS.

Letters: Ri boxes of an image, or of one class on it; K classes.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovd_d2.data.datasets.annotation_files import read_json
from ovd_d2.data.datasets.record_check import checked_results
from ovd_d2.errors import OVDError
from ovd_d2.files.digests import file_digest
from ovd_d2.pseudo_labelling import Found

from .proposer import best

logger = logging.getLogger(__name__)


class ResultsFile:
    """A :class:`~ovd_d2.proposals.proposer.BoxProposer` out of a file.

    Images and classes without an entry have no boxes.

    Args:
        path: a list of {"image_id", "bbox": [x, y, width, height], "score", "category_id"}, or a
            dict whose "annotations" are one, as `ovd pseudo-label` writes it.
        asked: what named the file, for messages.
        category_ids: (K,) the data set's id of each class; None: classes are ignored.
        image_ids: of the data set, one of which must have a box; None: not looked at.
        topk: boxes to keep per image, best first, without scores the first ones; None: all.
        needs_scores: whether every entry must have one. If not, all or none must.

    Raises:
        OVDError: unreadable or of another format, or not for this data set.
    """

    def __init__(
        self,
        path: str,
        asked: str,
        *,
        category_ids: Sequence[int] | None = None,
        image_ids: Sequence[int | str] | None = None,
        topk: int | None = None,
        needs_scores: bool = False,
    ) -> None:
        try:
            content = read_json(path)
            digest = file_digest(path)
        except (OSError, ValueError) as error:
            raise OVDError(f"{asked} cannot be read ({error})") from error
        known = None if category_ids is None else set(category_ids)
        entries = checked_results(content, path, scored=needs_scores, category_ids=known)
        self._rows: dict[tuple[Any, Any], list[tuple[list[float], float | None]]] = {}
        for entry in entries:
            x, y, width, height = entry["bbox"]
            key = (entry["image_id"], None if known is None else entry["category_id"])
            row = ([x, y, x + width, y + height], entry.get("score"))
            self._rows.setdefault(key, []).append(row)
        scored = {score is not None for rows in self._rows.values() for _, score in rows}
        if len(scored) > 1:
            raise OVDError(f"{path} has scores for some of its boxes only; give all or none")
        self.has_scores = scored == {True}
        if image_ids is not None:
            self._check_images(path, set(image_ids))
        self._category_ids, self._topk = category_ids, topk
        self.name = f"json:{Path(path).name}@{digest[:12]}"
        self.name += f", top {topk}" if topk else ""

    def _check_images(self, path: str, known: set[int | str]) -> None:
        found = dict.fromkeys(image_id for image_id, _ in self._rows)
        strange = [image_id for image_id in found if image_id not in known]
        if found and len(strange) == len(found):
            raise OVDError(
                f"{path} has no box for any image of the data set (its first image id is "
                f"{strange[0]!r}); give the proposals of this data set"
            )
        if strange:
            logger.warning(
                "%s has boxes for %d images that the data set does not have.", path, len(strange)
            )

    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int] | None = None
    ) -> list[Found]:
        """Boxes of one image, as :class:`~ovd_d2.proposals.proposer.BoxProposer` defines them."""
        ids = [None] if self._category_ids is None else [self._category_ids[k] for k in classes]
        return [self._found(self._rows.get((record["image_id"], one), [])) for one in ids]

    def _found(self, rows: list[tuple[list[float], float | None]]) -> Found:
        boxes = torch.tensor([box for box, _ in rows], dtype=torch.float32).view(-1, 4)
        if not self.has_scores:
            return boxes[: self._topk], torch.ones(len(boxes))[: self._topk]
        scores = torch.tensor([score for _, score in rows], dtype=torch.float32)
        return (boxes, scores) if self._topk is None else best(boxes, scores, self._topk)

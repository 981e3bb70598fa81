"""Builds the box proposer that a specification on the command line names.

Letters: Ri boxes of image i, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary
from ovd_d2.pseudo_labelling import OBJECT_QUERIES, Found

from .proposer import BoxProposer
from .results_file import ResultsFile

RPN_PROPOSALS = 300  # asked of an RPN for objects, of which NMS and topk leave the best


def build_region_proposer(
    spec: str,
    records: Sequence[dict[str, Any]],
    topk: int,
    device: str = "cpu",
    queries: Sequence[str] = (),
) -> BoxProposer:
    """The proposer of a region store's boxes.

    Args:
        spec: "gt", "json:FILE", "rpn:CHECKPOINT", "model:CHECKPOINT" or "hf:NAME_OR_FOLDER".
        records: of the data set, in Detectron2's dataset format.
        topk: boxes to keep per image.
        device: where a detector computes.
        queries: what to ask "model:" for objects; empty: RKD's four.

    Raises:
        OVDError: unknown kind, or the file or model cannot be used.
    """
    kind, _, rest = spec.partition(":")
    asked = f"--proposals {spec}"
    if topk < 1:
        raise OVDError(f"--topk {topk}: keep at least one box per image")
    if queries and kind != "model":
        raise OVDError(f"--queries are for --proposals model:CHECKPOINT, a MAVL; here: {spec}")
    if spec == "gt":
        return GroundTruthProposals(topk)
    if not rest or kind not in ("json", "rpn", "model", "hf"):
        raise OVDError(
            f"{asked} is unknown: use gt, json:FILE, rpn:CHECKPOINT, model:CHECKPOINT or hf:MODEL"
        )
    if kind == "json":
        image_ids = [record["image_id"] for record in records]
        return ResultsFile(rest, asked, image_ids=image_ids, topk=topk)
    if kind == "rpn":
        from .own_detector import RPNProposals

        return RPNProposals(rest, topk, device, asked=asked)
    if kind == "model":
        from .asked_detector import AskedDetector, asked_for_regions

        checkpoint, _, config = rest.partition(",config=")
        return asked_for_regions(AskedDetector(checkpoint, device, config, asked), queries, topk)
    from .huggingface_detector import open_huggingface_detector
    from .huggingface_proposals import HuggingFaceProposals

    return HuggingFaceProposals(open_huggingface_detector(rest, asked, device), topk)


def build_label_proposer(
    spec: str,
    vocabulary: Vocabulary | None,
    category_ids: Sequence[int],
    *,
    queries: Sequence[str] = (),
    config_file: str = "",
    batch: int = 0,
    device: str = "cpu",
) -> BoxProposer:
    """The proposer of pseudo-labels' boxes.

    Args:
        spec: "hf:NAME_OR_FOLDER", "model:CHECKPOINT", "mavl:PATH" or "json:FILE".
        vocabulary: K classes; None for objects.
        category_ids: (K,) of the data set's json.
        queries: what to ask "hf:" or a MAVL ("model:") for objects; empty: RKD's four.
        config_file: the yaml of "model:", if it is not beside the checkpoint.
        batch: queries at once of "hf:"; 0: as the device can.
        device: where a detector computes.

    Raises:
        OVDError: unknown kind, or the file or model cannot be used.
    """
    kind, _, rest = spec.partition(":")
    if not rest or kind not in ("hf", "model", "mavl", "json"):
        raise OVDError(
            f"--detector {spec} is unknown: use hf:MODEL, model:CHECKPOINT, mavl:PATH or json:FILE"
        )
    if queries and kind not in ("hf", "model"):
        raise OVDError(
            f"--queries are for --detector hf:MODEL or model:CHECKPOINT; {kind}: is not asked in "
            "words"
        )
    asked, known = f"--detector {spec}", None if vocabulary is None else category_ids
    if kind == "json":
        return ResultsFile(rest, asked, category_ids=known, needs_scores=True)
    if kind == "mavl":
        from .published_boxes import PickledBoxes

        return PickledBoxes(rest, known, asked)
    if kind == "hf":
        from .huggingface_detector import open_huggingface_detector
        from .queries import AskedInWords, class_queries

        detector = open_huggingface_detector(rest, asked, device, batch=batch, queries=True)
        objects = queries or OBJECT_QUERIES
        return AskedInWords(detector, objects if vocabulary is None else class_queries(vocabulary))
    checkpoint, _, config = rest.partition(",config=")
    return _own_labeller(checkpoint, config_file or config, vocabulary, queries, device)


def _own_labeller(
    checkpoint: str,
    config: str,
    vocabulary: Vocabulary | None,
    queries: Sequence[str],
    device: str,
) -> BoxProposer:
    """Of "model:": a MAVL is asked; of others the boxes of classes, or the RPN's."""
    from .asked_detector import AskedDetector, asked_for_labels, is_asked_in_words
    from .own_detector import DetectedLabels, RPNProposals, model_name

    asked = f"--detector model:{checkpoint}"
    if is_asked_in_words(checkpoint, config, asked):
        detector = AskedDetector(checkpoint, device, config, asked)
        return asked_for_labels(detector, vocabulary, queries)
    if queries:
        raise OVDError(
            f"{asked} is not asked for objects in words: leave --queries out, or give a MAVL or "
            "hf:MODEL"
        )
    if vocabulary is not None:
        return DetectedLabels(checkpoint, vocabulary, device, config, asked)
    proposer = RPNProposals(checkpoint, RPN_PROPOSALS, device, config, asked)
    proposer.name = model_name(*proposer.files, config) + ", RPN"
    return proposer


class GroundTruthProposals:
    """The boxes of a data set's annotations, crowds left out; at most ``topk``, without scores."""

    has_scores = False

    def __init__(self, topk: int) -> None:
        self.name = f"gt, top {topk}"
        self._topk = topk

    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int] | None = None
    ) -> list[Found]:
        """Boxes of one image, as :class:`~ovd_d2.proposals.proposer.BoxProposer` defines them."""
        from detectron2.structures import BoxMode

        boxes = [
            BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            for annotation in record.get("annotations", ())
            if not annotation.get("iscrowd", 0)
        ]
        boxes = torch.tensor(boxes[: self._topk], dtype=torch.float32).view(-1, 4)
        return [(boxes, torch.ones(len(boxes)))]

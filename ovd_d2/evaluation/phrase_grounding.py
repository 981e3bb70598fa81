"""Phrase grounding: for each phrase of a caption, is one of its best boxes right?

Letters: P phrases of a sentence, D boxes found for a phrase, best first, T target boxes of a
phrase. Boxes are x0, y0, x1, y1 in pixels of the original image; a box is right if it overlaps a
target by an IoU of at least 0.5.

Two protocols (Kamath et al. 2021, "MDETR", section 4.2.1) differ in phrases with several boxes:

* "any": each box is a target of its own; what GLIP and most others report;
* "merged": the one target is the box around all of them.
"""

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode, Instances
from torch import Tensor
from torchvision.ops import box_iou

from ovd_d2.errors import OVDError
from ovd_d2.evaluation.splits import of_all_processes, results_table

logger = logging.getLogger(__name__)

PROTOCOLS = ("any", "merged")
RANKS = (1, 5, 10)
NEVER = 2**31  # rank of the first right box where none is right

SentenceKey = tuple[Any, Any]  # image_id, sentence_id


@dataclass(frozen=True)
class PhraseTarget:
    """Where one phrase of a sentence is.

    Attributes:
        boxes: (T, 4), T at least 1.
        types: the kinds of thing it is, such as ("people", "clothing"); may be empty. The phrase
            counts once in each.
    """

    boxes: Sequence[Sequence[float]]
    types: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if len(self.boxes) == 0:
            raise OVDError(
                "boxes of a PhraseTarget is empty: leave phrases without boxes out of the targets."
            )


def phrase_targets(
    records: Iterable[Mapping[str, Any]],
) -> dict[SentenceKey, list[PhraseTarget]]:
    """The targets of a data set's records.

    Args:
        records: dicts with ``image_id``, ``sentence_id`` (0 if it is missing) and either
            ``phrases``, a list of dicts with ``boxes`` (T, 4) and, if there are any, ``types``; or
            ``caption`` (:class:`TokenSpans`) and ``annotations``, whose ``category_id`` is the
            phrase. All phrases count, so each needs a box.

    Returns:
        (image_id, sentence_id) -> the targets of its phrases, in their order. Sentences without
        phrases are no keys.

    Raises:
        OVDError: two records are about the same sentence, or a phrase has no box.
    """
    targets: dict[SentenceKey, list[PhraseTarget]] = {}
    for record in records:
        key = _key(record)
        if key in targets:
            raise OVDError(
                f"Two records have image_id {key[0]!r} and sentence_id {key[1]!r}: number the "
                "sentences of an image."
            )
        phrases = record["phrases"] if "phrases" in record else _annotated_phrases(record)
        if phrases:
            targets[key] = [PhraseTarget(p["boxes"], tuple(p.get("types", ()))) for p in phrases]
    return targets


def _annotated_phrases(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The phrases of a record whose boxes are annotations."""
    phrases: list[dict[str, Any]] = [{"boxes": []} for _ in record["caption"].spans]
    for annotation in record["annotations"]:
        box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        phrases[annotation["category_id"]]["boxes"].append(box)
    return phrases


def _key(record: Mapping[str, Any]) -> SentenceKey:
    return record["image_id"], record.get("sentence_id", 0)


def first_right_box(
    boxes: Sequence[Sequence[float]] | Tensor,
    targets: Sequence[Sequence[float]] | Tensor,
    *,
    protocol: str = "any",
    min_iou: float = 0.5,
) -> int:
    """The place, from 0, of the first right box of a phrase; ``NEVER`` if none is.

    Args:
        boxes: (D, 4), best first; may be empty.
        targets: (T, 4).
        protocol: "any" or "merged".
        min_iou: IoU, in [0, 1], from which on a box is right.
    """
    boxes = torch.as_tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    targets = torch.as_tensor(targets, dtype=torch.float64).reshape(-1, 4)
    if protocol == "merged":
        targets = torch.cat([targets[:, :2].amin(0), targets[:, 2:].amax(0)])[None]
    right = (box_iou(boxes, targets) >= min_iou).any(dim=1).nonzero()
    return int(right[0]) if len(right) else NEVER


def recall_of_phrases(
    first_right: Sequence[int],
    types: Sequence[Sequence[str]] | None = None,
    ranks: Sequence[int] = RANKS,
) -> dict[str, float]:
    """Recall at each rank, and with all boxes ("upper bound"), over all phrases and by type.

    Args:
        first_right: of N phrases, see :func:`first_right_box`.
        types: N lists of types; None if the phrases have none.
        ranks: the numbers of boxes per phrase that count.

    Returns:
        "R@1", "R@5", "R@10", "upper_bound", and for each type the same with "_people": in [0, 1],
        nan without phrases.
    """
    groups: dict[str, list[int]] = {"": list(range(len(first_right)))}
    of_types = defaultdict(list)
    for number, names in enumerate(types or ()):
        for name in dict.fromkeys(names):
            of_types[f"_{name}"].append(number)
    groups.update(sorted(of_types.items()))
    places = np.asarray(first_right, dtype=np.int64)
    levels = {**{f"R@{rank}": rank for rank in ranks}, "upper_bound": NEVER}
    return {
        f"{level}{group}": float(np.mean(places[members] < rank)) if members else float("nan")
        for group, members in groups.items()
        for level, rank in levels.items()
    }


def rank_predictions(
    predictions: Iterable[tuple[SentenceKey, Sequence[Sequence[Sequence[float]] | Tensor]]],
    targets: Mapping[SentenceKey, Sequence[PhraseTarget]],
    *,
    protocol: str = "any",
    min_iou: float = 0.5,
) -> dict[SentenceKey, list[int]]:
    """:func:`first_right_box` of every phrase, by sentence.

    Args:
        predictions: pairs of (image_id, sentence_id) and P lists of boxes, best first. What comes
            for a sentence a second time is passed over.
        targets: see :func:`phrase_targets`.
        protocol: "any" or "merged".
        min_iou: see :func:`first_right_box`.

    Returns:
        In the order of ``targets``, P numbers for each of its sentences.

    Raises:
        OVDError: a sentence has no prediction or another number of lists than phrases.
    """
    if protocol not in PROTOCOLS:
        raise OVDError(f"protocol is {protocol!r}: use one of {', '.join(PROTOCOLS)}.")
    found: dict[SentenceKey, list[int]] = {}
    for key, lists in predictions:
        phrases = targets.get(key, ())
        if key in found:
            continue
        if len(lists) != len(phrases):
            raise OVDError(
                f"The prediction of sentence {key[1]!r} of image {key[0]!r} has {len(lists)} lists "
                f"of boxes for {len(phrases)} phrases with targets: give one list a phrase, which "
                "may be empty."
            )
        found[key] = [
            first_right_box(boxes, phrase.boxes, protocol=protocol, min_iou=min_iou)
            for boxes, phrase in zip(lists, phrases, strict=True)
        ]
    return in_order_of_targets(found, targets)


def in_order_of_targets(
    found: Mapping[SentenceKey, list[int]], targets: Mapping[SentenceKey, Any]
) -> dict[SentenceKey, list[int]]:
    """``found`` in the order of ``targets``, without sentences that these lack.

    Raises:
        OVDError: a sentence of ``targets`` is not in ``found``.
    """
    missing = [key for key in targets if key not in found]
    if missing:
        raise OVDError(
            f"{len(missing)} of {len(targets)} sentences have no prediction, such as sentence "
            f"{missing[0][1]!r} of image {missing[0][0]!r}: predict all of the data set."
        )
    return {key: found[key] for key in targets}


def boxes_of_phrases(instances: Instances, num_phrases: int) -> list[Tensor]:
    """Detections as one list of boxes for each phrase.

    Args:
        instances: D detections with ``pred_boxes`` (D, 4), ``scores`` (D,) and ``pred_classes``
            (D,) int64, the place of the phrase in its sentence.
        num_phrases: P.

    Returns:
        P tensors (D of the phrase, 4), by descending score; equal scores keep their order.

    Raises:
        OVDError: a phrase is not in 0..P - 1.
    """
    phrases = instances.pred_classes
    wrong = phrases[(phrases < 0) | (phrases >= num_phrases)]
    if len(wrong):
        raise OVDError(
            f"The model predicts phrase {int(wrong[0])} of a sentence with {num_phrases} phrases: "
            "pred_classes must be the place of the phrase among those of the record."
        )
    order = torch.argsort(instances.scores, descending=True, stable=True)
    boxes, phrases = instances.pred_boxes.tensor[order], phrases[order]
    return [boxes[phrases == phrase] for phrase in range(num_phrases)]


class PhraseGroundingEvaluator(DatasetEvaluator):
    """Recall of phrases at 1, 5 and 10 boxes, as on Flickr30k Entities.

    An input is a dict with ``image_id`` and ``sentence_id`` (0 if it is missing), an output one
    with ``instances``: ``pred_boxes`` in pixels of the original image, ``scores`` and
    ``pred_classes``, the place of the phrase among those of its sentence. All boxes that a model
    gives count for the upper bound.

    ``evaluate()`` returns ``{"phrase_grounding": metrics, "phrase_grounding_merged": metrics}``
    for the protocols "any" and "merged": R@1, R@5, R@10, upper_bound, and the same of each type
    (R@1_people ...); percentages in [0, 100].
    """

    def __init__(
        self,
        targets: Mapping[SentenceKey, Sequence[PhraseTarget]],
        *,
        protocols: Sequence[str] = PROTOCOLS,
        distributed: bool = True,
    ) -> None:
        """Keeps the targets.

        Args:
            targets: (image_id, sentence_id) -> its phrases with boxes, see :func:`phrase_targets`.
            protocols: of "any" and "merged".
            distributed: gather the results of all processes on the main one.

        Raises:
            OVDError: there are no targets, or a protocol is unknown.
        """
        if not targets:
            raise OVDError("targets is empty: phrase grounding needs phrases with boxes.")
        for protocol in protocols:
            if protocol not in PROTOCOLS:
                raise OVDError(f"protocols has {protocol!r}: use {' and '.join(PROTOCOLS)}.")
        self._targets = targets
        self._protocols = tuple(protocols)
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Forgets all predictions."""
        # protocol -> sentence -> place of the first right box of each phrase
        self._found: dict[str, dict[SentenceKey, list[int]]] = {p: {} for p in self._protocols}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Compares a batch of predictions with the targets.

        Raises:
            OVDError: a sentence is not among the targets, or a phrase not in its sentence.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            key = _key(sample)
            if key not in self._targets:
                raise OVDError(
                    f"Sentence {key[1]!r} of image {key[0]!r} is not among the targets of the "
                    "evaluator: predict and evaluate on the same data set."
                )
            phrases = self._targets[key]
            lists = boxes_of_phrases(output["instances"].to("cpu"), len(phrases))
            for protocol, found in self._found.items():
                if key not in found:
                    of_key = rank_predictions([(key, lists)], {key: phrases}, protocol=protocol)
                    found.update(of_key)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """The metrics on the main process; {} on the others.

        Raises:
            OVDError: a sentence was not predicted.
        """
        gathered = of_all_processes(self._found, self._distributed)
        if gathered is None:
            return {}
        types = [phrase.types for phrases in self._targets.values() for phrase in phrases]
        results = {}
        for protocol in self._protocols:
            found: dict[SentenceKey, list[int]] = {}
            for of_process in gathered:  # the first prediction of a sentence counts
                found = {**of_process[protocol], **found}
            places = itertools.chain(*in_order_of_targets(found, self._targets).values())
            metrics = recall_of_phrases(list(places), types)
            name = "phrase_grounding" + ("" if protocol == "any" else f"_{protocol}")
            results[name] = {key: 100 * value for key, value in metrics.items()}
            _log_table(protocol, results[name], types)
        return results


def _log_table(protocol: str, metrics: Mapping[str, float], types: Sequence[Sequence[str]]) -> None:
    columns = ["phrases", *(f"R@{rank}" for rank in RANKS), "upper_bound"]
    rows: dict[str, dict[str, float]] = {}
    for name in ("", *sorted({name for names in types for name in names})):
        count = sum(name in names for names in types) if name else len(types)
        suffix = f"_{name}" if name else ""
        values = {column: metrics[f"{column}{suffix}"] for column in columns[1:]}
        rows[name or "all"] = {"phrases": count, **values}
    table = results_table(rows, columns, of="types")
    logger.info("Phrase grounding, %s box%s:\n%s", protocol, "es" * (protocol == "merged"), table)

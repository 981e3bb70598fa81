"""Score thresholds per name, chosen on a labelled data set.

Letters: K names, D detections, T thresholds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog

from ovd_d2.data.build import dataset_errors
from ovd_d2.errors import OVDError
from ovd_d2.evaluation.presence import THRESHOLDS
from ovd_d2.evaluation.presence_counts import Comparison
from ovd_d2.files.atomic import write_json
from ovd_d2.language import Vocabulary

from .name_thresholds import OF_NAMES
from .predictor import OpenVocabPredictor
from .score_threshold import LOWEST, compare_data_set

MIN_EXAMPLES = 5
PRIOR = 10.0


@dataclass(frozen=True)
class Calibration:
    """The thresholds of K names.

    Attributes:
        thresholds: (K,) in hundredths.
        pooled: the one of best F1 over all names together.
        examples: (K,) objects that a name has.
        own: (K,) bool: it has enough of them for a threshold of its own; else it is the pooled one.
    """

    thresholds: np.ndarray
    pooled: float
    examples: np.ndarray
    own: np.ndarray


def choose_thresholds(
    comparison: Comparison, min_examples: int = MIN_EXAMPLES, prior: float = PRIOR
) -> Calibration:
    """For each name the threshold of its best F1 of boxes.

    What is counted for a name - objects, detections from a threshold on, right ones among them - is
    joined by what ``prior`` objects of all names together have on average: a dozen examples alone
    choose thresholds that are too low for names which are hardly found, each of which then costs
    more wrong boxes than it finds objects. Of equals it is the lowest.

    Args:
        comparison: of the data set, from a score of 0.01 on.
        min_examples: names with fewer objects have the pooled threshold.
        prior: number of average objects; 0: a name's own counts alone.
    """
    right, shown = _from_threshold_on(comparison)
    objects = comparison.objects.astype(float)
    all_right, all_shown, everything = right.sum(axis=0), shown.sum(axis=0), objects.sum()
    pooled = THRESHOLDS[int((all_right / (all_shown + everything)).argmax())]
    share = prior / everything
    more = shown + objects[:, None] + share * (all_shown + everything)
    quality = (right + share * all_right) / np.maximum(more, 1e-9)
    own = (comparison.objects >= max(min_examples, 1)) & (quality.max(axis=1) > 0)
    best = np.array(THRESHOLDS)[quality.argmax(axis=1)]
    return Calibration(np.where(own, best, pooled), pooled, comparison.objects, own)


def _from_threshold_on(comparison: Comparison) -> tuple[np.ndarray, np.ndarray]:
    """(K, T) right detections, and all, that reach each of :data:`THRESHOLDS`."""
    # The number of thresholds that a score reaches; then sums from the end.
    reached = np.searchsorted(THRESHOLDS, comparison.scores, side="right")
    counts = []
    for flags in (comparison.right, np.ones_like(comparison.right)):
        table = np.zeros((len(comparison.objects), len(THRESHOLDS) + 1))
        np.add.at(table, (comparison.classes[flags], reached[flags]), 1)
        counts.append(table[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:])
    return counts[0], counts[1]


def f1_of_boxes(comparison: Comparison, thresholds: np.ndarray) -> dict[str, float]:
    """In percent "F1" over all boxes, and "F1_names", the mean of the F1 of names with objects.

    Args:
        comparison: of a data set, from a score below all thresholds on.
        thresholds: (K,).
    """
    shown = comparison.scores >= thresholds[comparison.classes]
    count = len(comparison.objects)
    right = np.bincount(comparison.classes[shown & comparison.right], minlength=count)
    both = np.bincount(comparison.classes[shown], minlength=count) + comparison.objects
    held = comparison.objects > 0
    return {
        "F1": float(200 * right.sum() / both.sum()),
        "F1_names": float((200 * right[held] / both[held]).mean()),
    }


def calibrate_names(
    predictor: OpenVocabPredictor,
    dataset: str,
    out: Path,
    *,
    test_dataset: str = "",
    images: int | None = None,
    min_examples: int = MIN_EXAMPLES,
    prior: float = PRIOR,
    info: dict[str, Any] | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Chooses thresholds of a data set's names, measures what they are worth, and writes both.

    Args:
        predictor: gets the data set's classes.
        dataset: registered, with boxes.
        out: the .json file, for ``ovd predict --thresholds``.
        test_dataset: another data set of the same names, on which they are measured too; "": none.
        images: the first so many of each; None: all.
        min_examples: see :func:`choose_thresholds`.
        prior: the same.
        info: facts to write down.
        on_image: called after every image.

    Returns:
        what is written: ``thresholds``, name -> threshold; ``examples``, name -> objects;
        ``pooled``; ``of_their_own``, names whose threshold is not the pooled one for want of
        examples; and ``f1``, data set -> {"one threshold", "per name"} ->
        {"F1", "F1_names"}, percent.

    Raises:
        OVDError: no such data set, no boxes in it, or other names in the second.
    """
    classes = Vocabulary.from_metadata(dataset)
    if test_dataset and Vocabulary.from_metadata(test_dataset).names != classes.names:
        raise OVDError(
            f"test_dataset {test_dataset} has other names than {dataset}: thresholds are measured "
            "on a data set of the same classes."
        )
    predictor.set_vocabulary(classes, thresholds=dict.fromkeys(classes.names, LOWEST))
    found = compare_data_set(predictor, dataset, images, on_image)
    chosen = choose_thresholds(found, min_examples, prior)
    measured = {dataset: found}
    if test_dataset:
        measured[test_dataset] = compare_data_set(predictor, test_dataset, images, on_image)
    one = np.full(len(classes), chosen.pooled)
    content = {
        **(info or {}),
        "dataset": dataset,
        "images": images,
        "min_examples": min_examples,
        "prior": prior,
        "pooled": chosen.pooled,
        "f1": {
            name: {
                "one threshold": f1_of_boxes(comparison, one),
                "per name": f1_of_boxes(comparison, chosen.thresholds),
            }
            for name, comparison in measured.items()
        },
        OF_NAMES: dict(zip(classes.names, chosen.thresholds.tolist())),
        "examples": dict(zip(classes.names, chosen.examples.tolist())),
        "of_their_own": [name for name, own in zip(classes.names, chosen.own) if own],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, content)
    return content


def number_of_images(datasets: list[str], images: int | None = None) -> int:
    """How many images :func:`calibrate_names` looks at.

    Raises:
        OVDError: no such data set, or it cannot be loaded.
    """
    with dataset_errors("dataset", datasets):
        return sum(len(DatasetCatalog.get(name)[:images]) for name in datasets)

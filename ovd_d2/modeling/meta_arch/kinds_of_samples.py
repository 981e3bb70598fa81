"""The kinds of samples that DetCLIP learns from, told by their fields."""

from collections.abc import Iterable
from typing import Any

from detectron2.utils import comm

from ovd_d2.errors import OVDError

DETECTION, GROUNDING, PAIRS = "boxes of classes", "boxes of phrases", "pairs"
KINDS = (DETECTION, GROUNDING, PAIRS)


def by_kind(samples: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Kind -> its samples, in their order.

    Raises:
        OVDError: a sample of no kind.
    """
    of_kind: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        of_kind.setdefault(_kind(sample), []).append(sample)
    return of_kind


def _kind(sample: dict[str, Any]) -> str:
    if "instances" in sample:
        return GROUNDING if "caption" in sample else DETECTION
    if "concepts" in sample:
        return PAIRS
    raise OVDError(
        f"The sample of {sample.get('file_name', 'an image')} has neither boxes (instances) nor "
        "concepts: set INPUT.PAIRS.NOUN_PHRASES auto for image-text pairs."
    )


def check_same_kinds(of_kind: dict[str, list[dict[str, Any]]]) -> None:
    """Raises OVDError if another process has other kinds of samples, or another number of pairs: it
    would wait for ever."""
    everywhere = comm.all_gather((sorted(of_kind), len(of_kind.get(PAIRS, []))))
    kinds, pairs = ([of_process[part] for of_process in everywhere] for part in (0, 1))
    if any(other != kinds[0] for other in kinds):
        raise OVDError(
            f"The processes have batches of different kinds ({kinds}): mix data sets by "
            "DATASETS.SOURCES, which gives all processes the same kind."
        )
    if len(set(pairs)) > 1:
        raise OVDError(
            f"The processes have {', '.join(map(str, pairs))} pairs, but each must have as many as "
            "the others: make SOLVER.IMS_PER_BATCH a multiple of their number."
        )

"""What is not known of training images: novel classes take no part in training, their boxes are
taken away, and names that nobody said anything about are named; LVIS lists what is known.

Letter: K classes of the data set.
"""

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary, novel_flags, read_novel_names
from ovd_d2.language.dataset_classes import class_names
from ovd_d2.structures import Supervision

from .model_kind import has_open_vocabulary

logger = logging.getLogger(__name__)

Records = list[dict[str, Any]]
_NAMED_AT_MOST = 5


def novel_mask(cfg: CfgNode, dataset: str) -> tuple[bool, ...]:
    """(K,) which classes of a data set are novel, by ``DATASETS.NOVEL_NAMES`` or its metadata; ()
    if nobody says, or its classes have no names.

    Raises:
        OVDError: the metadata do not fit the classes.
    """
    metadata = MetadataCatalog.get(dataset)
    names = class_names(metadata)
    if not names:
        return ()
    flags = novel_flags(metadata, names, read_novel_names(cfg.DATASETS.NOVEL_NAMES))
    if flags and len(flags) != len(names):
        raise OVDError(
            f"The metadata of data set '{dataset}' mark {len(flags)} classes in is_novel, but it "
            f"has {len(names)} classes: they must agree."
        )
    return flags


def without_novel_boxes(cfg: CfgNode, records: Records, dataset: str) -> Records:
    """The records without boxes of novel classes; labels of whole images stay.

    With ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` images that had nothing else go too.

    Args:
        cfg: the config.
        records: in Detectron2's dataset format; not modified.
        dataset: whose classes the records have.

    Raises:
        OVDError: nothing is left.
    """
    flags = novel_mask(cfg, dataset)
    if not any(flags):
        return records
    kept, removed = [], 0
    for record in records:
        annotations = record.get("annotations", ())
        left = [a for a in annotations if not (flags[a["category_id"]] and _is_box(a))]
        if len(left) == len(annotations):
            kept.append(record)
            continue
        removed += len(annotations) - len(left)
        if left or not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            kept.append({**record, "annotations": left})
    if not removed:
        return records
    logger.info(
        "%s: %d boxes of %d novel classes are held out of training, and with them %d of %d images.",
        dataset, removed, sum(flags), len(records) - len(kept), len(records),
    )  # fmt: skip
    if not any(record.get("annotations") for record in kept):
        raise OVDError(
            f"DATASETS.TRAIN {dataset} has boxes of novel classes alone: nothing is left to learn "
            "from. Look at DATASETS.NOVEL_NAMES, or at is_novel in the data set's metadata."
        )
    return kept


def warn_of_names_without_boxes(cfg: CfgNode, records: Records, dataset: str) -> None:
    """A warning that names the classes which will train as negatives, since no image of boxes has
    one and nobody holds them out."""
    if not has_open_vocabulary(cfg) or not MetadataCatalog.get(dataset).get("thing_classes"):
        return
    names = MetadataCatalog.get(dataset).thing_classes
    boxed = {
        names[a["category_id"]]
        for record in records
        for a in record.get("annotations", ())
        if _is_box(a) and not a.get("iscrowd", 0)
    }
    if not boxed:
        return
    vocabulary = Vocabulary.load(cfg.MODEL.OPEN_VOCAB.VOCABULARY or f"dataset:{dataset}")
    vocabulary = vocabulary.with_novel(read_novel_names(cfg.DATASETS.NOVEL_NAMES))
    counts = vocabulary.image_counts or (1,) * len(vocabulary)
    held_out = {
        name
        for name, novel, count in zip(vocabulary.names, vocabulary.is_novel, counts)
        if novel or not count
    }
    silent = [name for name in names if name not in boxed and name not in held_out]
    if silent:
        logger.warning(
            "%s has no box of %s, which are not marked novel either: they train as negatives, as "
            "if no image showed one, and will hardly be found. If images may show them, hold them "
            "out: name them in DATASETS.NOVEL_NAMES (or in is_novel of the data set's metadata).",
            dataset, _listed(silent),
        )  # fmt: skip


def with_absent_classes(records: Records, dataset: str) -> Records:
    """The records of a data set that lists the classes known to be absent from an image, as LVIS
    does in ``neg_category_ids``, with ``absent_classes``: those classes, numbered as
    ``category_id``. Others, and those all of whose lists are empty or that do not name their
    classes, stay as they are.

    Args:
        records: in Detectron2's dataset format; not modified.
        dataset: whose classes the records have; without ids of them in its metadata the ids are the
            class numbers + 1, as in LVIS.

    Raises:
        OVDError: a list has an id that no class has.
    """
    metadata = MetadataCatalog.get(dataset)
    count = len(metadata.get("thing_classes") or ())
    places = metadata.get("thing_dataset_id_to_contiguous_id") or {k + 1: k for k in range(count)}
    if not count or not any(record.get("neg_category_ids") for record in records):
        return records
    try:
        return [
            {**record, "absent_classes": [places[i] for i in record["neg_category_ids"]]}
            if "neg_category_ids" in record
            else record
            for record in records
        ]
    except KeyError as error:
        raise OVDError(
            f"DATASETS.TRAIN {dataset} has the id {error} in neg_category_ids, which is none of "
            f"its {count} classes: repair the annotation file."
        ) from None


def check_novel_names(cfg: CfgNode, datasets: Sequence[str]) -> None:
    """Raises OVDError if ``DATASETS.NOVEL_NAMES`` has a name that neither the model's vocabulary
    nor any of the data sets has.

    Args:
        cfg: the config.
        datasets: registered ones; loaded if their classes are known only then.
    """
    names = read_novel_names(cfg.DATASETS.NOVEL_NAMES)
    if not names:
        return
    own = cfg.MODEL.OPEN_VOCAB.VOCABULARY
    specs = [own] * bool(own) + [f"dataset:{dataset}" for dataset in datasets]
    known = {name for spec in specs for name in Vocabulary.load(spec).names}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise OVDError(
            f"DATASETS.NOVEL_NAMES has {_listed(unknown)}, which no class of "
            f"{', '.join(datasets)} is called: spell it as in the annotation file."
        )


def _is_box(annotation: dict[str, Any]) -> bool:
    return annotation.get("supervision", Supervision.BOX) == Supervision.BOX


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED_AT_MOST} more" if names[_NAMED_AT_MOST:] else ""
    return ", ".join(repr(name) for name in names[:_NAMED_AT_MOST]) + more

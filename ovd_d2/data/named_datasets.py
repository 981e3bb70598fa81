"""Data sets by their names: registered where a name says which files are meant, checked, and what
goes wrong with them said in one sentence."""

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.errors import OVDError

from .datasets.annotation_check import COCO, LVIS
from .datasets.annotation_files import read_annotations
from .datasets.coco_files import register_coco_files
from .datasets.grounding import register_grounding_file
from .datasets.image_labels import register_image_labels
from .datasets.image_text_pairs import register_pairs
from .datasets.odinw import register_odinw_few_shot
from .datasets.record_check import check_dataset_records

# Loading functions of these packages get files that have been checked, or check them.
_LOADERS_THAT_CHECK = ("detectron2.", "ovd_d2.")
# Values of ``evaluator_type`` of data sets that ask for phrases of captions, not for classes.
_OF_CAPTIONS = ("phrase_grounding", "refexp")
# Annotation files that were found in order: (path, size, time of the last change).
_CHECKED: set[tuple[str, int, int]] = set()


@contextmanager
def dataset_errors(key: str, names: Sequence[str]) -> Iterator[None]:
    """Turns what goes wrong while reading datasets into sentences that name ``key``."""
    check_registered(key, names)
    try:
        for name in names:
            check_stock_file(name)
        yield
    except FileNotFoundError as error:
        raise OVDError(
            f"{key} {', '.join(names)} needs the file {error.filename or error}, which does not "
            "exist: set DETECTRON2_DATASETS or prepare it as datasets/README.md says."
        ) from error
    except AssertionError as error:
        raise OVDError(f"{key} {', '.join(names)} cannot be used: {error}") from error
    except ValueError as error:
        if "different metadata" not in str(error):
            raise
        raise OVDError(
            f"{key} {', '.join(names)} have different classes, so they cannot be one data set: "
            "make each a source of DATASETS.SOURCES."
        ) from error


def check_registered(key: str, names: Sequence[str]) -> None:
    """Raises OVDError unless every name is registered in Detectron2's catalogue, or can be, see
    :func:`register_named_files`."""
    for name in names:
        if not register_named_files(name) and name not in DatasetCatalog.list():
            close = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
            hint = (
                f"did you mean {' or '.join(close)}?"
                if close
                else (
                    "register it by a file of yours (--register my_data.py), or name its files: "
                    "coco:IMAGE_FOLDER:LABELS.json."
                )
            )
            raise OVDError(f"{key} names the dataset {name!r}, which is not registered: {hint}")


def register_named_files(name: str) -> bool:
    """Registers a data set that is named by its files: "pairs:PATH" (image-text pairs),
    "labels:FILE" (image labels), "coco:FOLDER:FILE" (a COCO json), "grounding:FOLDER:FILE"
    (grounded captions), or a few-shot set of ODinW.

    Returns:
        whether ``name`` is of that kind; if not, nothing happens.
    """
    registrations = (
        register_pairs,
        register_image_labels,
        register_coco_files,
        register_grounding_file,
        register_odinw_few_shot,
    )
    return any(register(name) for register in registrations)


def asks_for_phrases(name: str) -> bool:
    """Whether the images of a test data set come with captions whose phrases are looked for."""
    register_named_files(name)
    return MetadataCatalog.get(name).get("evaluator_type") in _OF_CAPTIONS


def check_stock_file(name: str) -> None:
    """Checks the annotation file of a data set that one of Detectron2's own loaders will read; ours
    check what they read themselves. A file is checked once as long as it stays as it is.

    Raises:
        OVDError: see ``read_annotations``.
    """
    module = _loading_module(name)
    metadata = MetadataCatalog.get(name)
    path = metadata.get("json_file")
    if not path or "://" in path or not module.startswith("detectron2.data.datasets."):
        return
    try:
        stat = os.stat(path)
    except OSError:
        return  # its loader says so
    state = (os.path.realpath(path), stat.st_size, stat.st_mtime_ns)
    if state not in _CHECKED:
        kind = LVIS if module.endswith(".lvis") else COCO
        section = metadata.get("readme_section")
        read_annotations(path, section, kind, needs_annotations=False)
        _CHECKED.add(state)


def _loading_module(name: str) -> str:
    """The module of the function that loads a data set."""
    return getattr(DatasetCatalog[name], "__module__", None) or ""


def check_own_records(names: Sequence[str], records: Any) -> None:
    """Checks records of data sets of the same classes, if a loading function is a user's own."""
    own = not all(_loading_module(name).startswith(_LOADERS_THAT_CHECK) for name in names)
    if own and isinstance(records, list):
        classes = MetadataCatalog.get(names[0]).get("thing_classes")
        check_dataset_records(records, f"data set {', '.join(names)}", classes and len(classes))

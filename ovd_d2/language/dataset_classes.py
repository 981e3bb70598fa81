"""What the classes of a data set are called, by its Detectron2 metadata."""

from typing import Any


def is_semantic(metadata: Any) -> bool:
    """Whether a data set asks for label maps: its ``evaluator_type`` ends in "sem_seg", or it has
    none and ``stuff_classes`` alone."""
    kind = metadata.get("evaluator_type")
    if kind is None:
        return bool(metadata.get("stuff_classes")) and not metadata.get("thing_classes")
    return str(kind).endswith("sem_seg")


def class_names(metadata: Any) -> list[str] | None:
    """The names of a data set's K classes in the order of its class numbers.

    Those of a semantic data set are its ``stuff_classes``; those of any other its
    ``thing_classes``, or its ``stuff_classes`` where it has no things.

    Args:
        metadata: a data set's ``Metadata``.

    Returns:
        None where the metadata do not say, or not yet: some data sets say it when they are loaded.
    """
    keys = ("stuff_classes", "thing_classes")
    for key in keys if is_semantic(metadata) else keys[::-1]:
        if metadata.get(key):
            return list(metadata.get(key))
    return None

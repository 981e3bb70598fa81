"""Pseudo-labelling: image-level labels and proposals turned into annotations, offline.

After RKD (Rasheed et al. 2022, sections 3.2 and 3.3) with MAVL (Maaz et al. 2021) or any other
detector, which is a plain callable here.
"""

from .box_choice import (
    CLASS_QUERY,
    OBJECT_QUERIES,
    Found,
    choose_best,
    choose_for_label,
    choose_for_phrase,
    choose_objects,
)
from .caption_labels import CaptionLabeller
from .folder_labels import FolderLabeller
from .label_file import (
    LABELS_KIND,
    OBJECT_CATEGORY,
    OBJECTS_KIND,
    LabelledImage,
    labelled_image,
    read_label_file,
    write_label_file,
)

__all__ = [
    "CLASS_QUERY",
    "LABELS_KIND",
    "OBJECTS_KIND",
    "OBJECT_CATEGORY",
    "OBJECT_QUERIES",
    "CaptionLabeller",
    "FolderLabeller",
    "Found",
    "choose_best",
    "LabelledImage",
    "choose_for_label",
    "choose_for_phrase",
    "choose_objects",
    "labelled_image",
    "read_label_file",
    "write_label_file",
]

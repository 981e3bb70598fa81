"""Detections of many images, whatever file they come from or go to.

Letters: K classes; H, W height and width of an image.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovd_d2.errors import OVDError

# Categories of Unicode that names may not have: XML and lists of lines cannot hold them.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
_NO_CHARACTERS = "\ufffe\uffff"


@dataclass(frozen=True)
class DetectedObject:
    """One object.

    Attributes:
        label: its class, in [0, K).
        box: x0, y0, x1, y1 in pixels, inside of the image, with an area.
        score: in 0..1; None of what was annotated.
        mask: None, or as in COCO: polygons [[x, y, x, y, ...], ...] or run lengths of (H, W).
    """

    label: int
    box: tuple[float, float, float, float]
    score: float | None = None
    mask: list | Mapping[str, Any] | None = None


@dataclass(frozen=True)
class DetectedImage:
    """One image and what is in it.

    Attributes:
        image_id: of its data set.
        file: its path below the folder that all images share, "/" between the parts.
        source: where it is, or is said to be.
        width, height: in pixels, turned as its EXIF orientation says.
        objects: best first, or in the order of their file.
    """

    image_id: int | str
    file: str
    source: Path
    width: int
    height: int
    objects: tuple[DetectedObject, ...] = ()

    @property
    def stem(self) -> str:
        """``file`` without its ending."""
        return os.path.splitext(self.file)[0]


@dataclass(frozen=True)
class DetectionSet:
    """What all writers of formats read.

    Attributes:
        names: of the K classes.
        category_ids: K, as the data set numbers them.
        images: in order; files are distinct.
        info: facts on how the detections were made.
        left_out: reason -> how many objects are not here for it.

    Raises:
        OVDError: a name that no format can hold, or a class or image that is there twice.
    """

    names: tuple[str, ...]
    category_ids: tuple[int | str, ...]
    images: tuple[DetectedImage, ...]
    info: Mapping[str, Any] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for name, count in Counter(self.names).items():
            check_printable("class name", name)
            if count > 1:
                raise OVDError(f"Several classes are called {name!r}: rename all but one.")
        files: set[str] = set()
        for image in self.images:
            check_printable("file name", image.file)
            if image.file in files:
                raise OVDError(f"The image {image.file} is there twice: remove one entry.")
            files.add(image.file)

    @property
    def has_masks(self) -> bool:
        """Whether any object has one."""
        return any(one.mask is not None for image in self.images for one in image.objects)


def check_printable(what: str, text: str) -> None:
    """Raises OVDError if ``text`` has line breaks, control characters or what is no character."""
    for letter in text:
        if unicodedata.category(letter) in _UNPRINTABLE or letter in _NO_CHARACTERS:
            raise OVDError(
                f"The {what} {text!r} holds {letter!r}, which formats of label tools cannot: "
                "rename it."
            )


def below_common_folder(files: Sequence[str | os.PathLike]) -> list[str]:
    """The paths of ``files`` below the deepest folder that holds all of them, "/" between parts."""
    absolute = [os.path.abspath(file) for file in files]
    if not absolute:
        return []
    root = os.path.commonpath({os.path.dirname(file) for file in absolute})
    return [Path(os.path.relpath(file, root)).as_posix() for file in absolute]

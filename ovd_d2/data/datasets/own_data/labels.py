"""What a reader makes of files of labels, before anything in them is believed."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovd_d2.errors import OVDError
from ovd_d2.files.images import SUFFIXES

NAMED_AT_MOST = 5  # places of a remark that a report lists


class Remarks:
    """What was left out, and what else is worth saying; each reason with the places."""

    def __init__(self) -> None:
        self._left_out: dict[str, list[str]] = {}
        self._notes: dict[str, list[str]] = {}

    def left_out(self, reason: str, where: str) -> None:
        """Notes that what stands at ``where`` is wrong and will not be used."""
        self._left_out.setdefault(reason, []).append(where)

    def note(self, reason: str, where: str) -> None:
        """Notes something that is no fault."""
        self._notes.setdefault(reason, []).append(where)

    def add(self, other: "Remarks") -> None:
        """Takes over all of ``other``."""
        for mine, theirs in ((self._left_out, other._left_out), (self._notes, other._notes)):
            for reason, places in theirs.items():
                mine.setdefault(reason, []).extend(places)

    @property
    def count_left_out(self) -> int:
        """How many things were left out."""
        return sum(map(len, self._left_out.values()))

    def lines(self) -> list[str]:
        """A line per reason, faults first: "left out: 3 boxes have no area: a.txt line 2, ..."."""
        found = []
        for title, reasons in (("left out", self._left_out), ("note", self._notes)):
            for reason, places in reasons.items():
                named = ", ".join(places[:NAMED_AT_MOST])
                more = ", ..." if len(places) > NAMED_AT_MOST else ""
                found.append(f"{title}: {len(places)} {reason}: {named}{more}")
        return found


@dataclass(frozen=True)
class RawBox:
    """A box as its file has it.

    Attributes:
        name: of its class.
        box: x, y, width, height, numbers of any value.
        where: of the box, for messages.
        crowd: a group of objects, as COCO's iscrowd.
    """

    name: str
    box: tuple[float, float, float, float]
    where: str
    crowd: bool = False


@dataclass
class RawImage:
    """An image as its label file has it; it may be missing.

    Attributes:
        path: of the image.
        size: (width, height) by the label file; None: it does not say.
        boxes: its boxes.
    """

    path: Path
    size: tuple[int, int] | None = None
    boxes: list[RawBox] = field(default_factory=list)


@dataclass
class Labels:
    """Labelled images of one split.

    Attributes:
        source: the file or folder, for messages.
        names: of the classes, in the order in which the source declares them; more may be in boxes.
        images: in the order of the source.
        relative: boxes are in parts of the width and height of their image, not in pixels.
        remarks: what the reader could not use.
    """

    source: str
    names: list[str] = field(default_factory=list)
    images: list[RawImage] = field(default_factory=list)
    relative: bool = False
    remarks: Remarks = field(default_factory=Remarks)


def read_text(path: Path) -> str:
    """A text file as UTF-8; bytes that are none become "?" marks.

    Raises:
        OVDError: it cannot be read.
    """
    try:
        if not path.is_file():
            raise OVDError(f"{path} is no plain file: give one.")
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OVDError(f"{path} cannot be read ({reason}): check the file.") from error


def list_images(folder: Path) -> list[Path]:
    """The image files below ``folder``, sorted, by their suffixes."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def class_name(value: Any) -> str:
    """A class name without space around it; "" for what is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return str(value).replace("\0", "").strip()


def to_floats(values: Iterable[Any]) -> list[float]:
    """Numbers of any kind, and text that stands for them; nan for everything else."""
    found = []
    for value in values:
        try:
            found.append(math.nan if isinstance(value, bool) else float(value))
        except (TypeError, ValueError, OverflowError):
            found.append(math.nan)
    return found


def hull(points: Sequence[float]) -> tuple[float, float, float, float]:
    """The upright box x, y, width, height around points x0, y0, x1, y1, ...; at least one."""
    xs, ys = points[0::2], points[1::2]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)

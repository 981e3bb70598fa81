"""What is found wrong in annotations, counted and named, and what a number, box or id must be."""

import logging
import reprlib
from typing import Any

from ovd_d2.errors import OVDError

logger = logging.getLogger(__name__)

NUMBERS = (int, float)  # and nothing else: True is none
LARGEST = 2.0**31  # of a coordinate, in pixels
_LARGEST_ID = 2**63
_NAMED_AT_MOST = 3
BOX_RULE = "it must be [x, y, width, height] in pixels: four finite numbers, no side below 0"


class Findings:
    """What is wrong with a file or data set, and what of it will not be used.

    Args:
        what: the file or data set, for messages.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._wrong, self._named = 0, []
        self._left_out: dict[str, list[str]] = {}

    def wrong(self, where: str, problem: str) -> None:
        """Notes that the entry ``where`` cannot be meant."""
        self._wrong += 1
        if self._wrong <= _NAMED_AT_MOST:
            self._named.append(f"{where} {problem}")

    def left_out(self, reason: str, where: str) -> None:
        """Notes that the entry ``where`` will not be used."""
        self._left_out.setdefault(reason, []).append(where)

    def refuse(self) -> None:
        """Raises OVDError if anything is wrong."""
        if not self._wrong:
            return
        more = self._wrong - len(self._named)
        tail = f"; and {more} more of the kind" if more > 0 else ""
        raise OVDError(
            f"{self.what}: {'; '.join(self._named)}{tail}. Correct or remove "
            f"{'it' if self._wrong == 1 else 'them'}."
        )

    def tell(self) -> None:
        """A warning for each reason to leave entries out."""
        for reason, places in self._left_out.items():
            logger.warning("%s: %d %s, such as %s.", self.what, len(places), reason, places[0])


class _Short(reprlib.Repr):
    """Values as a message shows them: cut, and never an error themselves."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**20 else "a number of more than 20 digits"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 60
short = _SHORT.repr


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite int or float that can be a coordinate."""
    return type(value) in NUMBERS and -LARGEST < value < LARGEST


def is_box(box: Any) -> bool:
    """Whether ``box`` is [x, y, width, height]."""
    return (
        isinstance(box, list | tuple)
        and len(box) == 4
        and all(map(is_number, box))
        and box[2] >= 0
        and box[3] >= 0
    )


def is_id(value: Any) -> bool:
    """Whether ``value`` can be the id of an image, category or annotation."""
    if type(value) is int:
        return -_LARGEST_ID <= value < _LARGEST_ID
    return type(value) is str

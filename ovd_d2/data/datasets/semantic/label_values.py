"""What the values of label map files mean: tables from a value to a class.

Data sets are read as they are published, so no maps need to be converted. A record names its table
in ``label_values``; without one, values are classes.
"""

import functools

import numpy as np

from ovd_d2.errors import OVDError

IGNORED, INVALID = -1, -2  # entries of a table that are no classes
_BYTE = 256
# The 59 of the 459 labels of Pascal Context that count, in the order of their names.
_CONTEXT_59 = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113),
    *(115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324),
    *(326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)
_CONTEXT_LABELS = 460


@functools.cache
def value_table(name: str) -> np.ndarray:
    """The table of a name.

    | name | values | become |
    |---|---|---|
    | from_1 | 0; 1, 2, ...; 255 | ignored; 0, 1, ...; ignored |
    | coco_stuff | COCO-Stuff's (ids less 1) | its 171 classes; 255 is ignored |
    | coco_object | the same | 1 to 80 for things, else 0; nothing is ignored |
    | context_459, context_459_background | Pascal Context's 459 | 0 to 58, or 1 to 59 behind 0 |
    | grey | at least 128 | 1, else 0 |
    | one:V | V | 1, else 0 |
    | one:V:X | V; X | 1; ignored; else 0 |

    Returns:
        (number of values,) int64 classes, :data:`IGNORED` or :data:`INVALID`.
    """
    kind, *numbers = name.split(":")
    if kind in _TABLES:
        table = _TABLES[kind](*map(int, numbers))
        table.setflags(write=False)  # it is shared
        return table
    raise OVDError(f"A record has label_values {name!r}; the tables are {', '.join(_TABLES)}.")


def _filled(value: int, size: int = _BYTE) -> np.ndarray:
    return np.full(size, value, np.int64)


def _from_1() -> np.ndarray:
    return np.concatenate([[IGNORED], np.arange(_BYTE - 2), [IGNORED]])


def _thing_values() -> list[int]:
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    return sorted(c["id"] - 1 for c in COCO_CATEGORIES if c["isthing"])


def _coco_stuff() -> np.ndarray:
    table = _filled(INVALID)
    values = [*_thing_values(), *range(91, 182)]
    table[values] = np.arange(len(values))
    table[255] = IGNORED
    return table


def _coco_object() -> np.ndarray:
    table = _filled(0)
    values = _thing_values()
    table[values] = np.arange(1, len(values) + 1)
    return table


def _context_459(first: int = 0) -> np.ndarray:
    table = _filled(0 if first else IGNORED, _CONTEXT_LABELS)
    table[list(_CONTEXT_59)] = np.arange(first, first + len(_CONTEXT_59))
    return table


def _grey() -> np.ndarray:
    table = _filled(0)
    table[128:] = 1
    return table


def _one(value: int, ignored: int | None = None) -> np.ndarray:
    table = _filled(0)
    if ignored is not None:
        table[ignored] = IGNORED
    table[value] = 1
    return table


_TABLES = {
    "from_1": _from_1,
    "coco_stuff": _coco_stuff,
    "coco_object": _coco_object,
    "context_459": _context_459,
    "context_459_background": functools.partial(_context_459, 1),
    "grey": _grey,
    "one": _one,
}

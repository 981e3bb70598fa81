"""Score thresholds per class name: given by hand, or in a file that a calibration has written.

Letter: K classes.
"""

import os
from collections.abc import Mapping
from typing import Any

from ovd_d2.data.datasets.annotation_files import read_json
from ovd_d2.errors import OVDError
from ovd_d2.language.prompts import clean_name

from .arguments import check_score_threshold

ThresholdsLike = Mapping[str, float] | str | os.PathLike
OF_NAMES = "thresholds"  # their key in a file of a calibration
_NAMED_AT_MOST = 5


def as_thresholds(value: ThresholdsLike, names: tuple[str, ...]) -> dict[str, float]:
    """The thresholds of those of K classes that have one of their own.

    Args:
        value: class name -> threshold, in 0..1; or a .json file of that, {"cat": 0.3}, or one that
            ``ovd vocab calibrate`` wrote, of whose names those that are not looked for are passed
            over. Case and "_" for a space do not matter.
        names: of the K classes.

    Raises:
        OVDError: naming a name that is none of the classes, a bad threshold, or the file.
    """
    where, calibrated, table = "thresholds", False, value
    if isinstance(value, str | os.PathLike):
        where, table = f"thresholds {os.fspath(value)}", _read(value)
        calibrated = isinstance(table, Mapping) and isinstance(table.get(OF_NAMES), Mapping)
        table = table[OF_NAMES] if calibrated else table
    if not isinstance(table, Mapping):
        raise OVDError(f'{where}: give a mapping of names to scores, such as {{"cat": 0.3}}.')
    given = {}
    for name, threshold in table.items():
        try:
            given[clean_name(str(name))] = check_score_threshold(threshold)
        except OVDError as error:
            raise OVDError(f"{where}: {name!r}: {error}") from error
    known = {name: given[clean_name(name)] for name in names if clean_name(name) in given}
    unknown = [name for name in table if clean_name(str(name)) not in set(map(clean_name, names))]
    if unknown and not (calibrated and known):
        more = f" and {len(unknown) - _NAMED_AT_MOST} more" if unknown[_NAMED_AT_MOST:] else ""
        named = ", ".join(repr(name) for name in unknown[:_NAMED_AT_MOST])
        raise OVDError(
            f"{where}: {named}{more} is not among the {len(names)} names that are looked for: "
            "spell it as there, or leave it out."
        )
    return known


def _read(path: str | os.PathLike) -> Any:
    try:
        return read_json(path)
    except OSError as error:
        raise OVDError(f"Cannot read thresholds {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise OVDError(f"thresholds {path} is no valid json ({error}).") from error

"""One clear sentence for everything that can be wrong with an annotation file."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from ovd_d2.errors import OVDError


@contextlib.contextmanager
def explain_errors(json_file: str, section: str | None) -> Iterator[None]:
    """Turns what goes wrong while reading ``json_file`` into an ``OVDError`` that names it.

    Args:
        json_file: the annotation file that is being read inside the ``with`` block.
        section: heading in datasets/README.md that tells how to get the file; None if
            unknown.
    """
    remedy = "prepare the data set as datasets/README.md says"
    if section is not None:
        remedy = f"prepare the data set as section '{section}' of datasets/README.md says"
    try:
        yield
    except OVDError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as e:
        raise OVDError(f"{json_file} is missing: {remedy}.") from e
    except PermissionError as e:
        raise OVDError(f"{json_file} may not be read: check the permissions of the file.") from e
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise OVDError(f"{json_file} is no valid json ({e}); {remedy}.") from e
    except KeyError as e:
        raise OVDError(f"{json_file} lacks the entry {e}: {remedy}.") from e
    except (AssertionError, TypeError, AttributeError, ValueError) as e:
        raise OVDError(f"{json_file} is not in the expected format ({e}); {remedy}.") from e


def check_records(records: list[dict[str, Any]], json_file: str, section: str) -> None:
    """Raises an ``OVDError`` if a data set is empty or the folder of its first image is missing.

    Only one folder is looked at, no image is opened: the check costs the same for any data set.
    """
    if not records:
        raise OVDError(
            f"{json_file} holds no image with annotations of this split, so the data set is empty; "
            f"check it against section '{section}' of datasets/README.md."
        )
    folder = os.path.dirname(records[0]["file_name"])
    if not os.path.isdir(folder):
        raise OVDError(
            f"The image folder {folder} is missing: prepare the data set as section '{section}' of "
            "datasets/README.md says."
        )

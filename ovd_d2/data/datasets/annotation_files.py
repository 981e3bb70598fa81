"""One clear sentence for everything that can be wrong with an annotation file."""

import contextlib
import gc
import json
import os
from collections.abc import Iterator
from typing import Any

from ovd_d2.data.datasets.annotation_check import COCO, FileKind, check_annotations
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import is_special_file


def read_annotations(
    json_file: str | os.PathLike,
    section: str | None,
    kind: FileKind = COCO,
    *,
    needs_annotations: bool = True,
) -> dict[str, Any]:
    """The content of an annotation file, after one pass that refuses what cannot be meant.

    Args:
        json_file: the file.
        section: heading in datasets/README.md that tells how to get it; None if unknown.
        kind: what it is.
        needs_annotations: False for a test set, which may come without any.

    Raises:
        OVDError: missing, no json, or with wrong entries, of which the first are named.
    """
    json_file = os.fspath(json_file)
    with explain_errors(json_file, section), uncollected():
        content = read_json(json_file)
        check_annotations(content, json_file, kind)
        if needs_annotations:
            content["annotations"]  # a KeyError is explained
        return content


def read_json(path: str | os.PathLike) -> Any:
    """The content of a json file.

    Raises:
        OVDError: it is a pipe or a device, from which reading might never end.
        OSError: it is not there or may not be read.
        ValueError: it is no json, or nested too deeply.
    """
    if is_special_file(path):
        raise OVDError(f"{path} is no plain file but a pipe or a device: give a file.")
    try:
        with open(path, "rb") as file:
            return json.loads(file.read())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Inside, no garbage is searched for: among millions of new dicts that takes half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
    except (AssertionError, TypeError, AttributeError, ValueError, RecursionError) as e:
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

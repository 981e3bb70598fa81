"""Files that are either whole or not there, whatever kills the process."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

PARTIAL_SUFFIX = ".partial"


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the block ends without an exception.

    Written beside ``path``, flushed to the disk, renamed, and the folder flushed too.
    """
    folder, name = os.path.split(os.path.abspath(path))
    partial = os.path.join(folder, f".{name}{PARTIAL_SUFFIX}")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes ``content`` atomically; numpy scalars become numbers, nan and infinity null."""
    with atomic_write(path) as file:
        file.write((json.dumps(_plain(content), indent=2) + "\n").encode())


def is_special_file(path: str | os.PathLike) -> bool:
    """Whether ``path`` is a pipe, a socket or a device, from which reading may never end."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if hasattr(content, "item"):
        content = content.item()
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content

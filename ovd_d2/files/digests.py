"""Digests of files: which weights an encoder id means, and whether a file is still whole."""

import hashlib
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

_BLOCK = 1 << 20  # bytes read at a time


def file_digest(path: str | os.PathLike, *, fresh: bool = False) -> str:
    """Sha256 (64 hex digits) of a file's bytes.

    Read once per process: repeated calls are answered from memory while the file's size and
    modification time stay the same.

    Args:
        path: the file.
        fresh: reads it in any case, as a search for damage must.

    Raises:
        OSError: the file cannot be read.
    """
    if fresh:
        return _read_digest(path)
    resolved = Path(path).resolve()
    status = resolved.stat()
    return _digest(str(resolved), status.st_size, status.st_mtime_ns)


def folder_digest(folder: Path, files: Iterable[Path]) -> str:
    """Sha256 (64 hex digits) over the relative names and the contents of files of ``folder``."""
    digest = hashlib.sha256()
    for name in sorted(path.relative_to(folder).as_posix() for path in files):
        digest.update(f"{name}\0{file_digest(folder / name)}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    """The digest; size and mtime_ns only make the memory forget a file that changed."""
    return _read_digest(path)


def _read_digest(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()

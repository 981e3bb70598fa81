"""Folders that are written whole, and replaced only where nothing in them is anybody else's."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ovd_d2.errors import OVDError

from .atomic import PARTIAL_SUFFIX, beside, check_output_folder, missing_folders, remove_empty

MANIFEST = "ovd_d2.json"  # says what was written
_OLD_SUFFIX = ".old"


def check_written_folder(what: str, folder: str | os.PathLike) -> None:
    """Looks, before any work, whether :func:`write_folder` may write; writes nothing.

    Args:
        what: option or argument, for the message.
        folder: not there, empty, or written by :func:`write_folder` with nothing added since.

    Raises:
        OVDError: it is something else, or cannot be made.
    """
    folder = Path(folder)
    check_output_folder(what, folder)
    if not folder.is_dir():
        return
    known = {MANIFEST, *_files_of(folder)}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name not in known and (path.is_symlink() or not path.is_dir()):
            raise OVDError(
                f"{what} {folder} holds {name}, which was not written by this command: choose "
                "another folder, or move it away."
            )


def write_folder(
    what: str,
    folder: str | os.PathLike,
    files: Iterable[tuple[str, bytes]],
    *,
    copies: Mapping[str, Path] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> int:
    """Writes a folder that is whole or not there, whatever kills the process. What an earlier call
    wrote is gone then.

    Args:
        what: option or argument, for the message.
        folder: see :func:`check_written_folder`.
        files: (path below the folder, "/" between its parts; content) each.
        copies: path below the folder -> file to copy there.
        facts: for ``ovd_d2.json``, which lists the files too.

    Returns:
        how many files there are, ``ovd_d2.json`` not counted.

    Raises:
        OVDError: it cannot be written, or holds what is not ours.
    """
    check_written_folder(what, folder)
    folder = Path(os.path.realpath(folder))
    partial, old = beside(folder, PARTIAL_SUFFIX), beside(folder, _OLD_SUFFIX)
    made = missing_folders(folder.parent)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        names = _fill(partial, files, copies or {})
        content = {**(facts or {}), "files": names}
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (partial / MANIFEST).write_bytes(text.encode() + b"\n")
        shutil.rmtree(old, ignore_errors=True)
        if folder.is_dir():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OVDError(f"Cannot write {folder} ({what}): {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        remove_empty(made)
    return len(names)


def _fill(
    partial: Path, files: Iterable[tuple[str, bytes]], copies: Mapping[str, Path]
) -> list[str]:
    names: list[str] = []
    for name, content in files:
        target = _target(partial, name)
        target.write_bytes(content)
        names.append(name)
    for name, source in copies.items():
        shutil.copyfile(source, _target(partial, name))
        names.append(name)
    return names


def _target(partial: Path, name: str) -> Path:
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or PurePosixPath(name).is_absolute():
        raise OVDError(f"{name} lies outside of the folder that is written.")
    target = partial.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _files_of(folder: Path) -> list[str]:
    """What an earlier call says it wrote; nothing if there was none."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return []
    files = content.get("files") if isinstance(content, dict) else None
    return [name for name in files if isinstance(name, str)] if isinstance(files, list) else []

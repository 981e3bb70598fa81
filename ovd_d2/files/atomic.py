"""Files that are either whole or not there, whatever kills the process."""

import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ovd_d2.errors import OVDError

if TYPE_CHECKING:
    from PIL.Image import Image

PARTIAL_SUFFIX = ".partial"
_LONGEST_NAME = 255  # bytes, of the file systems in use
_LONGEST_PATH = 4095


def beside(path: str | os.PathLike, suffix: str, *, hidden: bool = True) -> Path:
    """A name in the folder of ``path`` for something that belongs to it: ``.NAME`` + ``suffix``,
    NAME being a digest where the whole would be too long for a file name."""
    path = Path(os.path.abspath(path))
    dot = "." if hidden else ""
    name = f"{dot}{path.name}{suffix}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f"{dot}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:24]}{suffix}"
    return path.with_name(name)


def missing_folders(path: str | os.PathLike) -> list[Path]:
    """Those of ``path`` and the folders above it that are not there yet, the deepest first."""
    path = Path(os.path.abspath(path))
    return [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]


def remove_empty(folders: Iterable[Path]) -> None:
    """Takes away those of ``folders``, the deepest first, that nothing was written into."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def check_output(
    what: str, path: str | os.PathLike, inputs: Iterable[str | os.PathLike] = ()
) -> None:
    """Looks, before any work, whether a file may be written; writes nothing.

    Args:
        what: option or argument, for the message.
        path: the file. It may exist, if it is a plain file.
        inputs: files that are read; of those that are not there nothing is said.

    Raises:
        OVDError: ``path`` is a folder, device or pipe, one of ``inputs`` (by whatever name), or
            cannot be made where it is to lie.
    """
    path = Path(path)
    try:
        _check_length(what, path)
        found = path.stat() if os.path.lexists(path) else None
        _check_plain(what, path, found)
        if found is not None:
            for file in inputs:
                if os.path.exists(file) and os.path.samefile(file, path):
                    raise OVDError(
                        f"Cannot write {path} ({what}): it is an input, choose another file."
                    )
        _check_folder(what, path.parent)
    except OSError as error:
        raise OVDError(f"Cannot write {_short(path)} ({what}): {error.strerror}.") from error


def check_output_folder(what: str, path: str | os.PathLike) -> None:
    """As :func:`check_output`, for a folder that is there or can be made.

    Raises:
        OVDError: it is something else, or cannot be made or written.
    """
    try:
        _check_length(what, Path(path))
        _check_folder(what, Path(path))
    except OSError as error:
        raise OVDError(f"Cannot write {_short(path)} ({what}): {error.strerror}.") from error


def _check_plain(what: str, path: Path, found: os.stat_result | None) -> None:
    if found is not None and not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no plain file"
        raise OVDError(f"Cannot write {path} ({what}): it is {kind}, name another.")


def _check_length(what: str, path: Path) -> None:
    lengths = [len(os.fsencode(part)) for part in path.parts]
    if max(lengths, default=0) > _LONGEST_NAME or len(os.fsencode(path)) > _LONGEST_PATH:
        raise OVDError(f"Cannot write {_short(path)} ({what}): the name is too long.")


def _check_folder(what: str, folder: Path) -> None:
    nearest = Path(os.path.abspath(folder))
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise OVDError(f"Cannot write {folder} ({what}): {nearest} is no folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OVDError(
            f"Cannot write {folder} ({what}): you may not write to {nearest}, choose another place."
        )


def _short(path: str | os.PathLike) -> str:
    text = os.fspath(path)
    return text if len(text) <= 300 else f"{text[:100]}...{text[-100:]}"


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the block ends without an exception.

    Written beside ``path``, flushed to the disk, renamed, and the folder flushed too.

    Raises:
        OVDError: ``path`` is there and no plain file.
        OSError: it cannot be written.
    """
    if os.path.lexists(path):
        _check_plain("output", Path(path), os.stat(path) if os.path.exists(path) else None)
    folder = os.path.dirname(os.path.abspath(path))
    partial = beside(path, PARTIAL_SUFFIX)
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _flush_folder(folder)


@contextmanager
def new_folder(what: str, path: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill that gets the name ``path`` when the block ends without an exception; after
    one, nothing of it is left.

    Args:
        what: option or argument, for the message.
        path: a folder that is not there, or empty.

    Raises:
        OVDError: it is there already, or cannot be written.
    """
    path = Path(path)
    check_new_folder(what, path)
    partial, made = beside(path, PARTIAL_SUFFIX), missing_folders(path.parent)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if path.is_dir():
            path.rmdir()
        partial.rename(path)
    except OSError as error:
        raise OVDError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        remove_empty(made)


def check_new_folder(what: str, path: str | os.PathLike) -> None:
    """As :func:`check_output_folder`, for a folder that must not hold anything yet.

    Raises:
        OVDError: also if it does.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OVDError(f"{what} {path} exists already: remove it, or choose another folder.")
    check_output_folder(what, path)


def put_in_place(partial: str | os.PathLike, path: str | os.PathLike) -> None:
    """Gives a whole file its name, so that it outlives a power cut.

    Args:
        partial: the file, in the folder of ``path``.
        path: its name from now on; what was there is gone.

    Raises:
        OSError: it cannot be written.
    """
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    _flush_folder(os.path.dirname(os.path.abspath(path)))


def _flush_folder(folder: str) -> None:
    """Makes a rename survive a power cut, where folders can be flushed: not on Windows, and not on
    some network file systems."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_picture(
    what: str, path: str | os.PathLike, inputs: Iterable[str | os.PathLike] = ()
) -> None:
    """As :func:`check_output`, for a picture, whose format its ending tells.

    Raises:
        OVDError: also for an ending that is no format's.
    """
    _format(what, path)
    check_output(what, path, inputs)


def write_picture(picture: "Image", path: str | os.PathLike) -> Path:
    """Writes a picture atomically; its folder is made.

    Raises:
        OVDError: no format has that ending, or it cannot be written.
    """
    path, kind = Path(path), _format("output", path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            picture.save(file, format=kind)
    except OVDError:
        raise
    except (OSError, ValueError) as error:
        raise OVDError(f"Cannot write {path}: {error}.") from error
    return path


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes ``content`` atomically; numpy scalars become numbers, nan and infinity null."""
    with atomic_write(path) as file:
        file.write((json.dumps(_plain(content), indent=2) + "\n").encode())


def is_special_file(path: str | os.PathLike) -> bool:
    """Whether ``path`` is a pipe, a socket or a device, from which reading may never end."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _format(what: str, path: str | os.PathLike) -> str:
    from PIL import Image

    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind not in Image.SAVE:
        raise OVDError(f"Cannot write {path} ({what}): end the name in .png or .jpg.")
    return kind


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

"""Writes a folder of detections in any of the formats."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovd_d2 import __version__
from ovd_d2.errors import OVDError
from ovd_d2.files.written_folder import check_written_folder, write_folder

from .coco import coco_files
from .cvat import cvat_files
from .detection_set import DetectionSet, below_common_folder, check_printable
from .label_studio import label_studio_files
from .options import FormatOptions
from .pascal_voc import voc_files
from .yolo import yolo_files


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        files: makes its files, (path, content) each.
        images: where it expects the images.
        file_per_image: it names a file after each image without its ending.
    """

    files: Callable[[DetectionSet, FormatOptions], Iterator[tuple[str, bytes]]]
    images: str = "images"
    file_per_image: bool = False


FORMATS = {
    "coco": Format(coco_files),
    "yolo": Format(yolo_files, file_per_image=True),
    "voc": Format(voc_files, images="JPEGImages", file_per_image=True),
    "cvat": Format(cvat_files),
    "label-studio": Format(label_studio_files),
}


def check_formats(
    what: str,
    formats: Sequence[str],
    out: str | os.PathLike | None = None,
    images: Sequence[str | os.PathLike] = (),
) -> None:
    """Looks, before any work, whether the folders ``OUT/FORMAT`` may be written.

    Args:
        what: the option that names formats, for messages.
        formats: of :data:`FORMATS`.
        out: the folder that the formats' folders will lie in; None: not looked at.
        images: the files that will be detected in.

    Raises:
        OVDError: no such format, images that cannot be told apart or named in it, or a folder that
            is somebody else's.
    """
    files = below_common_folder(images)
    for name in formats:
        _check_files(name, _known(what, name), files)
        if out is not None:
            check_written_folder("--out", Path(out) / name)


def write_detections(
    found: DetectionSet,
    name: str,
    folder: str | os.PathLike,
    options: FormatOptions | None = None,
    *,
    what: str = "--to",
) -> int:
    """Writes ``folder``, whole or not at all. What an earlier call wrote there is replaced; a
    folder with anything else in it is refused.

    Args:
        found: the detections.
        name: of :data:`FORMATS`.
        folder: where its files go, with ``ovd_d2.json``, which says what was written.
        options: of the format.
        what: the option that names the format, for messages.

    Returns:
        how many files were written.

    Raises:
        OVDError: no such format, images that it cannot tell apart, an image to copy that is not
            there, or a folder that cannot be written.
    """
    known, options = _known(what, name), options or FormatOptions()
    _check_files(name, known, [image.file for image in found.images])
    copies = {}
    if options.copy_images:
        copies = {f"{known.images}/{image.file}": image.source for image in found.images}
        for source in copies.values():
            if not source.is_file():
                raise OVDError(f"The image {source} is not there: say where by --image-root.")
    facts = {"ovd_d2": __version__, "format": name, "info": dict(found.info)}
    files = known.files(found, options)
    return write_folder("--out", folder, files, copies=copies, facts=facts)


def _known(what: str, name: str) -> Format:
    if name not in FORMATS:
        raise OVDError(f"{what} {name} is no format: use {', '.join(FORMATS)}.")
    return FORMATS[name]


def _check_files(name: str, known: Format, files: Sequence[str]) -> None:
    stems: dict[str, str] = {}
    for file, count in Counter(files).items():
        check_printable("file name", file)
        if count > 1:
            raise OVDError(f"The image {file} is there twice: name it once.")
        stem = os.path.splitext(file)[0].casefold()
        if known.file_per_image and stem in stems:
            raise OVDError(
                f"The images {stems[stem]} and {file} would have one file in the format {name}: "
                "rename one, or take coco, cvat or label-studio."
            )
        stems[stem] = file

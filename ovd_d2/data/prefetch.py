"""Decoding a data set's images while a model is busy with those before."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ovd_d2.data.mappers.detection import read_image
from ovd_d2.errors import OVDError
from ovd_d2.files.images import MAX_PIXELS, UnreadableImageError

logger = logging.getLogger(__name__)

MAX_UNREADABLE = 0.01  # share of images, as DATALOADER.MAX_CORRUPT_FRACTION
_READ_AHEAD = 4


def read_ahead(
    records: Sequence[dict[str, Any]], unreadable: list[str], share: int, allowed: float
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Records with their images, decoded by a second thread.

    Args:
        records: in Detectron2's dataset format.
        unreadable: files that cannot be read are appended; their records are left out.
        share: number of images that this process has in all; for the message.
        allowed: so many files may be unreadable.

    Yields:
        (record, (3, H, W) uint8 RGB), in order, turned as the EXIF orientation says.

    Raises:
        OVDError: too many unreadable files.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[dict[str, Any], Future]] = deque()
        try:
            for record in records:
                waiting.append((record, pool.submit(read_record, record)))
                if len(waiting) > _READ_AHEAD:
                    yield from _next_image(waiting, unreadable, share, allowed)
            while waiting:
                yield from _next_image(waiting, unreadable, share, allowed)
        finally:
            for _, future in waiting:
                future.cancel()


def _next_image(
    waiting: deque[tuple[dict[str, Any], Future]],
    unreadable: list[str],
    share: int,
    allowed: float,
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    record, future = waiting.popleft()
    try:
        image = future.result()
    except UnreadableImageError as error:
        logger.warning("%s It is left out.", error)
        unreadable.append(error.file_name)
        if len(unreadable) > allowed:
            raise OVDError(
                f"{len(unreadable)} of {share} images cannot be read, more than "
                f"{MAX_UNREADABLE:.0%}; the last: {error}"
            ) from error
    else:
        yield record, image


def read_record(record: dict[str, Any]) -> Tensor:
    """(3, H, W) uint8 RGB of a record's file, of the size that the record says.

    Raises:
        UnreadableImageError: it cannot be decoded, or has another size.
    """
    name = record["file_name"]
    pixels = read_image(name, "RGB", MAX_PIXELS)
    height, width = pixels.shape[:2]
    wanted = (record.get("height", height), record.get("width", width))
    if wanted != (height, width):
        reason = f"it has {width} x {height} pixels, annotated as {wanted[1]} x {wanted[0]}"
        raise UnreadableImageError.of(name, reason)
    return torch.from_numpy(pixels).permute(2, 0, 1)

"""The captioned images of a data set, whose phrases are to be found."""

import logging
from collections.abc import Mapping
from typing import Any

from ovd_d2.errors import OVDError
from ovd_d2.structures import TokenSpans

from .label_sources import Records, load_images

logger = logging.getLogger(__name__)


def load_captioned_images(dataset: str) -> Records:
    """Records of whole images with ``caption``, a text, in Detectron2's dataset format.

    Captions of a part of an image (``box``) are left out, and so are images without a caption; a
    log line counts them.

    Args:
        dataset: registered, or image-text pairs, "pairs:PATH".

    Raises:
        OVDError: no such data set, no captions of whole images in it, or images in tar shards.
    """
    if not dataset:
        raise OVDError(
            "--task grounding needs --dataset, images with captions: image-text pairs (pairs:PATH) "
            "or a registered data set"
        )
    records = load_images(dataset, "")
    if any("shard" in record for record in records):
        raise OVDError(
            f"--dataset {dataset} is in tar shards, but a grounding json names image files: unpack "
            "them, and name the folder (pairs:FOLDER)"
        )
    whole = [record for record in records if record.get("box") is None]
    captioned = [{**r, "caption": _text(r)} for r in whole if r.get("caption")]
    if not captioned:
        raise OVDError(
            f"--dataset {dataset} has no captions of whole images: give image-text pairs "
            "(pairs:PATH), or a registered data set whose records have a caption"
        )
    if len(captioned) < len(records):
        logger.info(
            "%s: %d captions of a part of an image and %d images without a caption are left out.",
            dataset,
            len(records) - len(whole),
            len(whole) - len(captioned),
        )
    return captioned


def _text(record: Mapping[str, Any]) -> str:
    caption = record["caption"]
    text = caption.caption if isinstance(caption, TokenSpans) else caption
    if not isinstance(text, str):
        raise OVDError(
            f"the caption of {record['file_name']} is a {type(text).__name__}: the data set must "
            "give it as text"
        )
    return text

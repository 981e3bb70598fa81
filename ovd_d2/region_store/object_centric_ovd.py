"""Importer of the region features of object-centric-ovd (RKD, Rasheed et al. 2022).

Published as one pickle per image, ``IMAGE_NAME.pkl``, in one folder (COCO) or in one per synset
(ImageNet-LVIS): a list of (box, embedding), best proposal first; box: 4 floats, xyxy in pixels of
the original image; embedding: tensor (1, D), not normalised, of CLIP ViT-B/32 on the plain crop.

Letters: Ri regions of image i, D embedding width.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.structures import RegionEmbeddings

from .manifest import ImageId, StoreFacts, checked_image_id
from .restricted_unpickler import read_restricted_pickle
from .writer import RegionStoreWriter

CROP_RULE = "1x"
PROPOSALS = "object-centric-ovd (MAVL, class-agnostic)"
DIM = 512


@dataclass(frozen=True)
class ImportReport:
    """What an import found.

    Attributes:
        images: images in the store now.
        images_without_file: images of the annotation file that have no pickle; not in the store.
        files_without_image: pickles of images that the annotation file does not list; not read.
    """

    images: int
    images_without_file: int
    files_without_image: int


def import_object_centric_ovd(
    source: str | os.PathLike,
    annotations: str | os.PathLike,
    path: str | os.PathLike,
    *,
    encoder_id: str,
    dataset_name: str,
    dim: int = DIM,
    topk: int | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Makes a region store of published pickles; goes on where an interrupted import stopped.

    Args:
        source: folder with the pickles, searched with its sub-folders.
        annotations: COCO or LVIS json whose images give the ids.
        path: folder of the store.
        encoder_id: of the CLIP model that made the features.
        dataset_name: the data set of ``annotations``.
        dim: D.
        topk: keep that many regions per image, the best ones; None keeps all.
        on_image: told (images done, images to do) after each image of this run.

    Raises:
        OVDError: a pickle is refused (nothing of it was run) or not of this layout, two pickles or
            two images share a name, or the annotation file cannot be read.
    """
    id_of = image_ids_by_name(annotations)
    files = pickles_by_name(Path(source))
    facts = StoreFacts.for_dataset(
        dataset_name,
        id_of.values(),
        encoder_id=encoder_id,
        dim=dim,
        crop_rule=CROP_RULE,
        proposals=PROPOSALS + (f", top {topk}" if topk is not None else ""),
    )
    names = {id_of[name]: name for name in sorted(files) if name in id_of}
    if not names:
        raise OVDError(f"no pickle in {source} belongs to an image of {annotations}: wrong pair?")
    with RegionStoreWriter(path, facts) as writer:
        todo = writer.remaining(names)
        for number, image_id in enumerate(todo):
            writer.append(image_id, read_regions(files[names[image_id]], dim)[:topk])
            if on_image is not None:
                on_image(number + 1, len(todo))
        images = len(writer.done_ids)
    return ImportReport(images, len(id_of) - len(names), len(files) - len(names))


def read_regions(path: Path, dim: int) -> RegionEmbeddings:
    """The regions of one published pickle, embeddings L2-normalised float32 (Ri, D).

    Raises:
        OVDError: see :func:`import_object_centric_ovd`.
    """
    content = read_restricted_pickle(path)
    if not isinstance(content, list):
        raise OVDError(f"{path} holds a {type(content).__name__}, not a list of (box, embedding)")
    boxes, embeddings = torch.zeros(len(content), 4), torch.zeros(len(content), dim)
    for row, region in enumerate(content):
        if not isinstance(region, list | tuple) or len(region) != 2:
            raise OVDError(f"region {row} of {path} is not a pair of box and embedding")
        boxes[row] = _numbers(region[0], 4, f"the box of region {row} of {path}")
        embeddings[row] = _numbers(region[1], dim, f"the embedding of region {row} of {path}")
    norms = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    if not (norms > 0).all() or not norms.isfinite().all():
        raise OVDError(f"{path} holds an embedding that is zero, nan or infinite; leave it out")
    return RegionEmbeddings(boxes, embeddings / norms)


def image_ids_by_name(annotations: str | os.PathLike) -> dict[str, ImageId]:
    """Image ids of a COCO or LVIS json by file name, without folder and ending.

    Raises:
        OVDError: unreadable, without images, or two images have one name.
    """
    try:
        with open(annotations, encoding="utf-8") as file:
            images = json.load(file)["images"]
        pairs = [
            (image.get("file_name") or image["coco_url"], checked_image_id(image["id"]))
            for image in images
        ]
    except OVDError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OVDError(
            f"annotation file {annotations} does not list images with id and file_name "
            f"({type(error).__name__}: {error}); give a COCO or LVIS json"
        ) from error
    id_of: dict[str, ImageId] = {}
    for file_name, image_id in pairs:
        name = published_name(str(file_name))
        if name in id_of:
            raise OVDError(
                f"images {id_of[name]!r} and {image_id!r} of {annotations} are both named {name}, "
                "so the pickles, which go by name, cannot be told apart"
            )
        id_of[name] = image_id
    return id_of


def pickles_by_name(source: Path) -> dict[str, Path]:
    """The .pkl files in a folder and below it, by the name of their image.

    Raises:
        OVDError: no such folder, no pickle in it, or two of the same image.
    """
    if not source.is_dir():
        raise OVDError(f"folder {source} does not exist; give the one with the published pickles")
    files: dict[str, Path] = {}
    for path in sorted(source.rglob("*.pkl")):
        name = published_name(path.name)
        if name in files:
            raise OVDError(f"{files[name]} and {path} are of the same image; remove one")
        files[name] = path
    if not files:
        raise OVDError(f"folder {source} holds no .pkl file; give the one with published pickles")
    return files


def published_name(file_name: str) -> str:
    """What the published pickles call an image: up to the first dot, without folders."""
    return file_name.rsplit("/", 1)[-1].split(".", 1)[0]


def _numbers(values: Any, count: int, what: str) -> Tensor:
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise OVDError(f"{what} is not made of numbers") from error
    if array.shape not in ((count,), (1, count)):
        raise OVDError(f"{what} has shape {array.shape}, not ({count},)")
    return torch.from_numpy(array.reshape(count))

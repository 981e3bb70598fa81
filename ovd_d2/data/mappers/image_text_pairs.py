"""From a pair record to an image of fixed size and its caption.

Letters: S side of the training image.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from PIL import Image
from torch import Tensor

from ovd_d2.data.mappers.caption_concepts import CaptionConcepts
from ovd_d2.data.mappers.detection import DATASET_MAPPER_REGISTRY, in_format, read_image
from ovd_d2.data.mappers.pair_augmentation import NoiseErasing, auto_augmentation
from ovd_d2.data.mappers.prompted_nouns import PromptedNouns
from ovd_d2.errors import OVDError
from ovd_d2.files import images
from ovd_d2.files.images import MAX_PIXELS, UnreadableImageError


@DATASET_MAPPER_REGISTRY.register()
class ImageTextPairMapper:
    """Reads the image of a pair, crops it to the pair's box if it has one, and augments it.

    A record has ``file_name``, and as its data set knows: ``caption`` (str), ``box`` (x0, y0, x1,
    y1, pixels), ``label`` (int), ``shard`` (where in a tar file the image is, see
    ``datasets.tar_shards``).

    In training the image is resampled to S x S whatever its shape, with PIL's bicubic filter, and
    the sample has ``concepts`` or ``prompted_nouns`` if they are asked for. In testing the crop
    keeps its size: the model's own preprocessing follows.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        image_size: int,
        image_format: str = "RGB",
        max_pixels: int = MAX_PIXELS,
        box_scale: tuple[float, float] = (1.0, 1.0),
        box_shift: float = 0.0,
        crop_area: tuple[float, float] = (1.0, 1.0),
        squash: bool = False,
        flip: bool = False,
        color_jitter: float = 0.0,
        gray: float = 0.0,
        auto_augment: Callable[[Image.Image], Image.Image] | None = None,
        erasing: Callable[[Tensor], Tensor] | None = None,
        concepts: CaptionConcepts | None = None,
        prompted_nouns: PromptedNouns | None = None,
    ) -> None:
        """
        Args:
            is_train: whether to augment.
            image_size: S.
            image_format: "RGB" or "BGR", the order of the channels.
            max_pixels: see ``read_image``.
            box_scale: smallest and largest side of the crop over the side of the box.
            box_shift: largest shift of the crop's centre over the side of the box.
            crop_area: least and largest share of an image without box that is kept.
            squash: such a crop has the image's shape; otherwise it is square, as CLIP's.
            flip: mirror half of the images.
            color_jitter: 0 for none; see ``INPUT.PAIRS``.
            gray: probability of a grey image.
            auto_augment: of the cropped image, before colours change; None: no more.
            erasing: of the (3, S, S) uint8 tensor, at the end; None: nothing is erased.
            concepts: finds those of a caption, in training; None: samples have none.
            prompted_nouns: makes texts of a caption's nouns, in training; None: samples have none.

        Raises:
            OVDError: a value out of its range.
        """
        _check_limits(box_scale, box_shift, crop_area, color_jitter, gray)
        self.is_train = is_train
        self.image_size = image_size
        self.image_format = image_format
        self.max_pixels = max_pixels
        self.box_scale = box_scale
        self.box_shift = box_shift
        self.crop_area = crop_area
        self.squash = squash
        self.flip = flip
        self.gray = gray
        self.auto_augment = auto_augment
        self.erasing = erasing
        self.concepts = concepts if is_train else None
        self.prompted_nouns = prompted_nouns if is_train else None
        self.color_jitter = _color_jitter(color_jitter) if color_jitter else None

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """The keyword arguments that ``cfg`` asks for."""
        keys = cfg.INPUT.PAIRS
        with_concepts = is_train and keys.NOUN_PHRASES
        return {
            "is_train": is_train,
            "image_size": keys.IMAGE_SIZE or cfg.MODEL.CLIP.IMAGE_SIZE,
            "image_format": cfg.INPUT.FORMAT,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
            "box_scale": tuple(keys.BOX_SCALE),
            "box_shift": keys.BOX_SHIFT,
            "crop_area": tuple(keys.CROP_AREA),
            "squash": (keys.RESIZE or cfg.MODEL.CLIP.RESIZE) == "squash",
            "flip": cfg.INPUT.RANDOM_FLIP == "horizontal",
            "color_jitter": keys.COLOR_JITTER,
            "gray": keys.GRAY,
            "concepts": (
                CaptionConcepts(keys.NOUN_PHRASES, keys.WITHOUT_NOUN_PHRASE)
                if with_concepts
                else None
            ),
            **(_training_parts(cfg) if is_train else {}),
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            record: see the class; not modified.

        Returns:
            the record with ``image`` (3, H, W) uint8; in training H = W = S, and ``concepts`` and
            ``prompted_nouns``, lists of texts, see :class:`CaptionConcepts` and
            :class:`PromptedNouns`.

        Raises:
            UnreadableImageError: naming the file and the reason.
            LeftOutError: a caption without noun phrase whose pair is to be left out.
            OVDError: one that is to be refused.
        """
        found = {} if self.concepts is None else {"concepts": self.concepts(record)}
        if self.prompted_nouns is not None:
            found["prompted_nouns"] = self.prompted_nouns(record)
        pixels = self._read(record)
        height, width = pixels.shape[:2]
        image = Image.fromarray(pixels)
        if self.is_train:
            window = self._training_window(record.get("box"), width, height)
            side = (self.image_size, self.image_size)
            image = image.resize(side, Image.Resampling.BICUBIC, box=window)
            if self.flip and np.random.random() < 0.5:  # noqa: NPY002 (seeded per sample)
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            image = image if self.auto_augment is None else self.auto_augment(image)
        elif "box" in record:
            image = image.crop(_whole_pixels(record["box"], width, height))
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return {**record, **found, "image": self._recolor(tensor) if self.is_train else tensor}

    def _read(self, record: dict[str, Any]) -> np.ndarray:
        if "shard" in record:
            return read_shard_image(record, self.image_format, self.max_pixels)
        return read_image(record["file_name"], self.image_format, self.max_pixels)

    def _training_window(
        self, box: tuple[float, ...] | None, width: int, height: int
    ) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of the crop, inside the image and at least one pixel wide and high."""
        rng = np.random  # the global generator: the loader seeds it for every sample
        if box is None:
            share = math.sqrt(rng.uniform(*self.crop_area))
            sides = [width * share, height * share]
            if not self.squash:
                sides = [min(sides)] * 2
            x0 = rng.uniform(0, width - sides[0])
            y0 = rng.uniform(0, height - sides[1])
            return x0, y0, x0 + sides[0], y0 + sides[1]
        low, high = (math.log(value) for value in self.box_scale)
        window = []
        for start, end, limit in ((box[0], box[2], width), (box[1], box[3], height)):
            center = (start + end) / 2 + (end - start) * rng.uniform(-1, 1) * self.box_shift
            # Each side on its own: proposals have the wrong shape too.
            half = (end - start) / 2 * math.exp(rng.uniform(low, high))
            first = min(max(center - half, 0), limit - 1)
            window.append((first, max(min(center + half, limit), first + 1)))
        (x0, x1), (y0, y1) = window
        return x0, y0, x1, y1

    def _recolor(self, image: Tensor) -> Tensor:
        if self.color_jitter is not None:
            image = self.color_jitter(image)
        if self.gray and float(torch.rand(())) < self.gray:
            image = image.float().mean(dim=0, keepdim=True).to(torch.uint8).expand(3, -1, -1)
        image = image if self.erasing is None else self.erasing(image)
        return image.contiguous()


def _check_limits(
    box_scale: tuple[float, float],
    box_shift: float,
    crop_area: tuple[float, float],
    color_jitter: float,
    gray: float,
) -> None:
    limits = [
        ("BOX_SCALE", box_scale, len(box_scale) == 2 and 0 < box_scale[0] <= box_scale[1],
         "two numbers above 0, the smaller first"),
        ("BOX_SHIFT", box_shift, box_shift >= 0, "0 or more"),
        ("CROP_AREA", crop_area, len(crop_area) == 2 and 0 < crop_area[0] <= crop_area[1] <= 1,
         "two numbers above 0 and up to 1, the smaller first"),
        ("COLOR_JITTER", color_jitter, 0 <= color_jitter < 1, "at least 0 and below 1"),
        ("GRAY", gray, 0 <= gray <= 1, "between 0 and 1"),
    ]  # fmt: skip
    for key, value, good, wanted in limits:
        if not good:
            raise OVDError(f"INPUT.PAIRS.{key} is {value}; it must be {wanted}.")


def _training_parts(cfg: CfgNode) -> dict[str, Any]:
    keys = cfg.INPUT.PAIRS
    parts: dict[str, Any] = {}
    if keys.AUTO_AUGMENT:
        parts["auto_augment"] = auto_augmentation(keys.AUTO_AUGMENT, cfg.MODEL.PIXEL_MEAN)
    if keys.RANDOM_ERASING:
        mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
        parts["erasing"] = NoiseErasing(keys.RANDOM_ERASING, mean, std)
    if keys.PROMPTED_NOUNS:
        parts["prompted_nouns"] = PromptedNouns(keys.PROMPTED_NOUNS, keys.NOUNS_BY)
    return parts


def _color_jitter(strength: float) -> Any:
    from torchvision.transforms import v2

    return v2.ColorJitter(strength, strength, strength)


def _whole_pixels(box: tuple[float, ...], width: int, height: int) -> tuple[int, int, int, int]:
    """The pixels a box touches, inside the image and at least one."""
    x0 = min(max(math.floor(box[0]), 0), width - 1)
    y0 = min(max(math.floor(box[1]), 0), height - 1)
    return (
        x0,
        y0,
        max(min(math.ceil(box[2]), width), x0 + 1),
        max(min(math.ceil(box[3]), height), y0 + 1),
    )


def read_shard_image(record: dict[str, Any], image_format: str, max_pixels: int) -> np.ndarray:
    """Decodes an image inside a tar file; as ``read_image``.

    Args:
        record: ``file_name`` for messages, ``shard`` (path, offset, size).
        image_format: see ``read_image``.
        max_pixels: see ``read_image``.

    Raises:
        UnreadableImageError: naming shard and member.
    """
    name = record["file_name"]
    path, offset, size = record["shard"]
    remedy = "Replace the shard."
    try:
        with open(path, "rb") as file:
            data = os.pread(file.fileno(), size, offset)
        if len(data) != size:
            raise OSError("the shard ends before the image does")
    except OSError as error:
        raise UnreadableImageError.of(name, f"{type(error).__name__}: {error}", remedy) from error
    rgb = images.read_image(name, max_pixels=max_pixels, content=data, remedy=remedy)
    return in_format(rgb, image_format)

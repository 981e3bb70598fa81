"""From a record with a label map to what a segmentation model is trained on.

Letters: K classes of the data set; H, W height and width of the augmented image.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T

from ovd_d2.data.datasets.semantic import read_label_map
from ovd_d2.data.datasets.semantic.label_sets import IGNORE_LABEL
from ovd_d2.data.held_out import novel_mask
from ovd_d2.data.mappers.detection import (
    DATASET_MAPPER_REGISTRY,
    OpenVocabDatasetMapper,
    scale_jitter_augmentations,
)
from ovd_d2.errors import OVDError
from ovd_d2.language.dataset_classes import class_names

_BYTE = 255
# Entries of records that only say where a map comes from.
_SOURCES = ("sem_seg_file_name", "sem_seg_masks", "label_values", "annotations")


@DATASET_MAPPER_REGISTRY.register()
class SemanticSegmentationMapper(OpenVocabDatasetMapper):
    """Detectron2's mapper for images with label maps of any kind that records name.

    Maps are scaled (to the nearest pixel), cut, padded and mirrored with their images. Class
    numbers stay those of the data set, or of the ``class_names`` of a record that has some; the
    model maps them to its vocabulary by name. Pixels of padding, of novel classes and without a
    class are ignored.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        num_classes: int = 0,
        ignore_label: int = IGNORE_LABEL,
        ignore_value: int = IGNORE_LABEL,
        is_novel: Sequence[bool] = (),
        square: int = 0,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            is_train: maps become ``sem_seg``; otherwise they are dropped.
            num_classes: K, of training data; records with ``class_names`` count those.
            ignore_label: value of pixels without a class, in the files.
            ignore_value: the same in ``sem_seg``.
            is_novel: (K,) classes whose pixels are ignored in training; () for none.
            square: side to which images were resized without keeping their shape, for the frame of
                a test result of a record with ``class_names``; 0: they were not.
            kwargs: of ``OpenVocabDatasetMapper``.
        """
        super().__init__(is_train, **kwargs)
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.ignore_value = ignore_value
        self.novel = torch.tensor([c for c, novel in enumerate(is_novel) if novel])
        self.square = square

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """The keyword arguments that ``cfg`` asks for.

        Raises:
            OVDError: data sets of different classes, or none.
        """
        ret = super().from_config(cfg, is_train)
        side = cfg.INPUT.SQUARE
        if is_train and cfg.INPUT.SCALE_JITTER.ENABLED:
            ignored = _padding(len(_classes_of_training(cfg)))
            ret["augmentations"] = scale_jitter_augmentations(cfg, ignored)
        elif side:
            flips = [a for a in ret["augmentations"] if isinstance(a, T.RandomFlip)]
            ret["augmentations"] = [T.Resize((side, side)), *flips]
        return {
            **ret,
            "square": side,
            "recompute_boxes": False,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    @classmethod
    def targets_from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Those that say what training maps hold."""
        dataset = cfg.DATASETS.TRAIN[0]
        return {
            "num_classes": len(_classes_of_training(cfg)),
            "ignore_label": _ignore_label(dataset),
            "is_novel": novel_mask(cfg, dataset),
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: one record, see
                :func:`~ovd_d2.data.datasets.semantic.read_label_map`; not modified.

        Returns:
            the record with ``image`` (C, H, W) uint8 in ``INPUT.FORMAT`` and, in training,
            ``sem_seg`` (H, W) int64.

        Raises:
            UnreadableImageError: image or map cannot be read.
            OVDError: the map is of another size, or holds values that are no classes.
        """
        sample = {k: copy.copy(v) for k, v in dataset_dict.items() if k not in _SOURCES}
        pixels = self._read_pixels(sample)
        labels = self._labels(dataset_dict, pixels.shape[:2]) if self.is_train else None
        aug_input = T.AugInput(pixels, sem_seg=labels)
        self.augmentations(aug_input)
        sample["image"] = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        if labels is not None:
            sample["sem_seg"] = self._targets(aug_input.sem_seg, dataset_dict)
        elif self.square and "class_names" in sample:
            sample["height"] = sample["width"] = self.square
        return sample

    def _count(self, record: dict[str, Any]) -> int:
        return len(record["class_names"]) if "class_names" in record else self.num_classes

    def _labels(self, record: dict[str, Any], shape: tuple[int, int]) -> np.ndarray:
        """(H, W) class numbers, or the padding's value, in a type that augmentations keep."""
        count = self._count(record)
        labels = read_label_map(record, count, self.ignore_label, max_pixels=self.max_pixels)
        if labels.shape != shape:
            sizes = [f"{w} x {h}" for h, w in (labels.shape, shape)]
            raise OVDError(
                f"The label map {record['sem_seg_file_name']} has {sizes[0]} pixels, its image "
                f"{record['file_name']} {sizes[1]}: give a map of the image's size."
            )
        padding = _padding(count)
        labels[labels == self.ignore_label] = padding
        # Of bytes, Pillow takes the nearest pixel; of other types, torch takes one beside it.
        return labels.astype(np.uint8 if padding == _BYTE else np.float32)

    def _targets(self, labels: np.ndarray, record: dict[str, Any]) -> torch.Tensor:
        targets = torch.from_numpy(labels.astype(np.int64))
        ignored = targets == _padding(self._count(record))
        if len(self.novel) and "class_names" not in record:
            ignored |= torch.isin(targets, self.novel)
        return targets.masked_fill(ignored, self.ignore_value)


def _padding(num_classes: int) -> int:
    """A number that is no class, for pixels to ignore while they are augmented."""
    return _BYTE if num_classes <= _BYTE else (1 << 16) - 1


def _ignore_label(dataset: str) -> int:
    return MetadataCatalog.get(dataset).get("ignore_label", IGNORE_LABEL)


def _classes_of_training(cfg: CfgNode) -> list[str]:
    """The classes that all of DATASETS.TRAIN share.

    Raises:
        OVDError: they have none, or not the same, or not the same ``ignore_label``.
    """
    found = {}
    for dataset in cfg.DATASETS.TRAIN:
        if class_names(MetadataCatalog.get(dataset)) is None:
            DatasetCatalog.get(dataset)  # some name them when they are loaded
        found[dataset] = class_names(MetadataCatalog.get(dataset))
    names = ", ".join(found)
    first = found[cfg.DATASETS.TRAIN[0]]
    if not first:
        raise OVDError(
            f"DATASETS.TRAIN {names} does not name its classes: set stuff_classes in the metadata "
            "of the data set."
        )
    if any(classes != first for classes in found.values()):
        raise OVDError(
            f"DATASETS.TRAIN {names} have different classes, so their label maps cannot be one "
            "data set: train on one of them, or give them the same stuff_classes."
        )
    if len({_ignore_label(dataset) for dataset in found}) > 1:
        raise OVDError(f"DATASETS.TRAIN {names} have different values of ignore_label.")
    return first

"""From a dataset record to what a detector eats, naming every image that cannot be read."""

import copy
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode, Instances
from detectron2.utils.registry import Registry
from PIL import Image

from ovd_d2.data.mappers.class_alignment import class_map, trained_names
from ovd_d2.data.mappers.resize_crop import resize_and_crop
from ovd_d2.data.mappers.target_rows import boxes_in_frame, followed_by, no_targets
from ovd_d2.data.mappers.teacher_regions import TeacherRegions
from ovd_d2.data.model_kind import check_heads_are_used
from ovd_d2.errors import OVDError
from ovd_d2.files import images
from ovd_d2.files.images import MAX_PIXELS, UnreadableImageError
from ovd_d2.structures import Supervision, TokenSpans
from ovd_d2.structures.class_numbering import mark_numbering, numbering_of

DATASET_MAPPER_REGISTRY = Registry("DATASET_MAPPER")
DATASET_MAPPER_REGISTRY.__doc__ = (
    """Mappers that ``INPUT.MAPPER`` names: ``Mapper(cfg, is_train)``."""
)


_REMEDY = "Replace the file or its annotation."


def read_image(file_name: str, image_format: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The pixels of an image file, see :mod:`ovd_d2.files.images`, in one of Detectron2's formats.

    Args:
        file_name: anything Detectron2's ``PathManager`` opens.
        image_format: of Detectron2: "BGR", "RGB", "L", ...
        max_pixels: larger images are refused before they are decoded; 0 for no limit.

    Returns:
        (H, W, C) uint8 array, 0-255, channels in the order of ``image_format``.

    Raises:
        UnreadableImageError: naming the file and the reason.
    """
    return in_format(
        images.read_image(file_name, max_pixels=max_pixels, remedy=_REMEDY), image_format
    )


def in_format(rgb: np.ndarray, image_format: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB in one of Detectron2's formats; may share memory."""
    if image_format in ("RGB", "BGR"):
        return rgb if image_format == "RGB" else rgb[:, :, ::-1]
    return utils.convert_PIL_to_numpy(Image.fromarray(rgb), image_format)


def scale_jitter_augmentations(cfg: CfgNode, ignore_label: int = 255) -> list[T.Augmentation]:
    """Large-scale jitter as ``INPUT.SCALE_JITTER`` says, then the flip of ``INPUT.RANDOM_FLIP``.

    Args:
        cfg: the config.
        ignore_label: what label maps are padded with.
    """
    jitter = cfg.INPUT.SCALE_JITTER
    size = jitter.SIZE
    augmentations: list[T.Augmentation] = [
        T.ResizeScale(jitter.MIN_SCALE, jitter.MAX_SCALE, size, size),
        T.FixedSizeCrop((size, size), pad_value=jitter.PAD_VALUE, seg_pad_value=ignore_label),
    ]
    if cfg.INPUT.RANDOM_FLIP != "none":
        horizontal = cfg.INPUT.RANDOM_FLIP == "horizontal"
        augmentations.append(T.RandomFlip(horizontal=horizontal, vertical=not horizontal))
    return augmentations


@DATASET_MAPPER_REGISTRY.register()
class OpenVocabDatasetMapper(DatasetMapper):
    """Detectron2's mapper for boxes, masks and keypoints, safe on broken image files.

    Augmentations, formats and fields are Detectron2's, and so are all rows of an image without
    what follows. Annotations may have an entry "supervision", a value of :class:`Supervision`, BOX
    where it is missing; if any of an image's annotations has one, the rows have the field
    ``supervision`` (Ri,) int64, those of BOX first. Rows of IMAGE_LABEL have a class and a box, and
    no mask. With a region store, the teacher's regions are target rows too, see
    :meth:`TeacherRegions.append_to`. Rows whose classes are places in a vocabulary say so (see
    ``structures.class_numbering``), which spares open-vocabulary heads the mapping. Subclasses that
    add target rows override ``_transform_annotations``; those whose targets are no classes,
    ``targets_from_config`` too.
    """

    reads_captions = False  # whether boxes of phrases become targets

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        max_pixels: int = MAX_PIXELS,
        teacher_regions: TeacherRegions | None = None,
        class_map: Sequence[int] | None = None,
        trained_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            is_train: annotations become ``instances``; otherwise they are dropped.
            max_pixels: see :func:`read_image`.
            teacher_regions: adds regions to the ``instances`` of training images.
            class_map: the model's class for each ``category_id``; None: they are the same.
            trained_names: the model's vocabulary, in which these classes are; None: the classes
                are numbers of the data set, and no row is marked.
            kwargs: of Detectron2's ``DatasetMapper``.
        """
        super().__init__(is_train, **kwargs)
        self.max_pixels = max_pixels
        self.teacher_regions = teacher_regions
        self.class_map = None if class_map is None else torch.tensor(class_map, dtype=torch.int64)
        self.numbering = None if trained_names is None else numbering_of(trained_names)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """The keyword arguments that ``cfg`` asks for."""
        ret = super().from_config(cfg, is_train)
        if is_train and cfg.INPUT.SCALE_JITTER.ENABLED:
            ret["augmentations"] = scale_jitter_augmentations(cfg)
            ret["recompute_boxes"] = cfg.MODEL.MASK_ON  # the crop cuts objects
        crop = cfg.INPUT.RESIZE_CROP
        if is_train and crop.PROB > 0:
            first = resize_and_crop(crop.PROB, crop.SHORT_SIDES, tuple(crop.SIDES))
            ret["augmentations"] = [first, *ret["augmentations"]]
            ret["recompute_boxes"] = cfg.MODEL.MASK_ON
        if ret["recompute_boxes"] and importlib.util.find_spec("shapely") is None:
            raise OVDError(
                "INPUT.CROP, SCALE_JITTER and RESIZE_CROP cut mask polygons with shapely: "
                "pip install shapely."
            )
        if is_train:
            ret.update(cls.targets_from_config(cfg))
        return {**ret, "max_pixels": cfg.INPUT.MAX_PIXELS}

    @classmethod
    def targets_from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Those of the keyword arguments that say what training targets are made of."""
        check_heads_are_used(cfg)
        return {
            "teacher_regions": TeacherRegions.from_config(cfg),
            "class_map": class_map(cfg),
            "trained_names": trained_names(cfg),
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """
        Args:
            dataset_dict: one record in Detectron2's dataset format; not modified.

        Returns:
            the record with ``image`` (C, H, W) uint8 in ``INPUT.FORMAT`` and, in training,
            ``instances`` in the frame of the augmented image, and ``absent_classes`` (n,) int64,
            numbered as ``gt_classes``, if the record has such a list. None for a training image
            that had nothing but image labels, the boxes of which the augmentations have cut off:
            without them it would pass for an image with nothing on it.

        Raises:
            UnreadableImageError: naming the file and the reason.
        """
        if self.is_train:
            self._check_record(dataset_dict)
        sample = self._copied(dataset_dict)
        aug_input = T.AugInput(
            self._read_pixels(sample), boxes=_boxes(sample), sem_seg=self._read_sem_seg(sample)
        )
        transforms = self.augmentations(aug_input)
        image_shape = aug_input.image.shape[:2]
        sample["image"] = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        if self.proposal_topk is not None:
            utils.transform_proposals(
                sample, image_shape, transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            sample.pop("annotations", None)
            return sample
        if aug_input.sem_seg is not None:
            sample["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype("long"))
        if "annotations" in sample:
            kinds = {a.get("supervision", Supervision.BOX) for a in sample["annotations"]}
            self._transform_annotations(sample, transforms, image_shape)
            targets = sample["instances"]
            if kinds == {Supervision.IMAGE_LABEL} and not len(targets):
                return None
            if self.class_map is not None:
                targets.gt_classes = self.class_map[targets.gt_classes]
        if "absent_classes" in sample:
            absent = torch.tensor(sample["absent_classes"], dtype=torch.int64)
            sample["absent_classes"] = absent if self.class_map is None else self.class_map[absent]
        if self.teacher_regions is not None:
            targets = sample.get("instances")
            if targets is None:
                targets = no_targets(image_shape)
            sample["instances"] = self.teacher_regions.append_to(
                targets, sample["image_id"], transforms
            )
        if self.numbering is not None and "instances" in sample:
            mark_numbering(sample["instances"], self.numbering)
        return sample

    def _copied(self, record: dict[str, Any]) -> dict[str, Any]:
        """A deep copy of a record; outlines, the most of it, are left out if nobody asks."""
        if not self.use_instance_mask and "annotations" in record:
            boxes = [
                {k: v for k, v in a.items() if k != "segmentation"} for a in record["annotations"]
            ]
            record = {**record, "annotations": boxes}
        return copy.deepcopy(record)

    def _check_record(self, record: dict[str, Any]) -> None:
        """Raises OVDError for a training image that is for another mapper."""
        if not self.reads_captions and has_phrases(record):
            raise OVDError(
                f"The boxes of {record['file_name']} are of phrases of a caption, not of "
                "classes: set INPUT.MAPPER GroundingMapper."
            )
        if not record.keys().isdisjoint(("label_values", "sem_seg_masks")):
            raise OVDError(
                f"The label map of {record['file_name']} cannot be read as it is: set "
                "INPUT.MAPPER SemanticSegmentationMapper."
            )

    def _transform_annotations(
        self, sample: dict[str, Any], transforms: T.Transform, image_shape: tuple[int, int]
    ) -> None:
        """Replaces ``annotations`` by ``instances``."""
        annotations = sample.pop("annotations")
        kinds = [a.get("supervision", Supervision.BOX) for a in annotations]
        strange = set(kinds) - {Supervision.BOX, Supervision.IMAGE_LABEL}
        if strange:
            raise OVDError(
                f"An annotation of {sample['file_name']} has supervision {strange.pop()!r}: give "
                f"{int(Supervision.BOX)} (box) or {int(Supervision.IMAGE_LABEL)} (image label)."
            )
        boxed = [a for a, kind in zip(annotations, kinds) if kind == Supervision.BOX]
        if all(a.get("iscrowd", 0) for a in boxed):
            sample["instances"] = no_targets(image_shape)
        else:
            sample["annotations"] = boxed
            super()._transform_annotations(sample, transforms, image_shape)
        if any("supervision" in a for a in annotations):
            labels = [
                annotation
                for annotation, kind in zip(annotations, kinds)
                if kind == Supervision.IMAGE_LABEL and not annotation.get("iscrowd", 0)
            ]
            sample["instances"] = _with_labels(sample["instances"], labels, transforms)

    def _read_pixels(self, sample: dict[str, Any]) -> np.ndarray:
        image = read_image(sample["file_name"], self.image_format, self.max_pixels)
        try:
            utils.check_image_size(sample, image)
        except utils.SizeMismatchError:
            shapes = f"{image.shape[1]} x {image.shape[0]} pixels, annotated as"
            reason = f"it has {shapes} {sample.get('width')} x {sample.get('height')}"
            raise UnreadableImageError.of(sample["file_name"], reason, _REMEDY) from None
        return image

    def _read_sem_seg(self, sample: dict[str, Any]) -> np.ndarray | None:
        file_name = sample.pop("sem_seg_file_name", None)
        if file_name is None or not self.is_train:
            return None
        try:  # Detectron2's reader: these are class numbers, not a picture
            return utils.read_image(file_name, "L").squeeze(2)
        except Exception as error:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise UnreadableImageError.of(file_name, reason, _REMEDY) from error


def _boxes(record: dict[str, Any]) -> np.ndarray | None:
    """(Ri, 4) float32 x0 y0 x1 y1 of what is annotated, for augmentations that look at it; None
    where there is nothing, or a box is turned."""
    annotations = [a for a in record.get("annotations", ()) if "bbox" in a]
    if not annotations or any(a["bbox_mode"] == BoxMode.XYWHA_ABS for a in annotations):
        return None
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return np.asarray(boxes, dtype=np.float32)


def _with_labels(
    targets: Instances, labels: Sequence[dict[str, Any]], transforms: T.Transform
) -> Instances:
    """``targets``, then a row of IMAGE_LABEL per annotation whose box is still in the image."""
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in labels]
    boxes, left = boxes_in_frame(
        torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), transforms, targets.image_size
    )
    classes = torch.tensor([a["category_id"] for a in labels], dtype=torch.int64)[left]
    return followed_by(targets, boxes, classes, Supervision.IMAGE_LABEL)


def has_phrases(record: dict[str, Any]) -> bool:
    """Whether the classes of a record's annotations are numbers of phrases of its caption."""
    return isinstance(record.get("caption"), TokenSpans)


def build_mapper(cfg: CfgNode, is_train: bool) -> DatasetMapper:
    """The mapper that ``INPUT.MAPPER`` names."""
    name = cfg.INPUT.MAPPER
    if name not in DATASET_MAPPER_REGISTRY:
        known = ", ".join(sorted(key for key, _ in DATASET_MAPPER_REGISTRY))
        raise OVDError(f"INPUT.MAPPER is {name!r}, but the mappers are: {known}.")
    return DATASET_MAPPER_REGISTRY.get(name)(cfg, is_train)

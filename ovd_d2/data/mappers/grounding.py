"""From a record with a grounded caption to what a grounding model is trained on.

Letter: Ri boxes of image i.
"""

from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from ovd_d2.data.mappers.detection import DATASET_MAPPER_REGISTRY, OpenVocabDatasetMapper
from ovd_d2.data.model_kind import reads_captions
from ovd_d2.errors import OVDError
from ovd_d2.language.noun_phrases import swap_left_right
from ovd_d2.structures import TokenSpans


@DATASET_MAPPER_REGISTRY.register()
class GroundingMapper(OpenVocabDatasetMapper):
    """The mapper of boxes, for boxes of phrases in place of classes.

    A record is one of ``datasets.grounding``: ``caption`` (:class:`TokenSpans`, or a str whose
    phrases are those of ``phrases``, if there are any), and annotations whose ``category_id`` is
    the number of a phrase. Images are read
    and augmented as :class:`OpenVocabDatasetMapper` does. A sample has ``caption`` (TokenSpans), in
    training also ``instances`` with ``gt_boxes`` (Ri, 4) and ``gt_phrases`` (Ri,) int64, indices
    into ``caption.spans``; no class numbers. An image without boxes keeps its caption. In tests
    records of data sets of classes are taken too.
    """

    reads_captions = True

    @configurable
    def __init__(self, is_train: bool, *, swaps_left_right: bool = True, **kwargs: Any) -> None:
        """
        Args:
            is_train: annotations become ``instances``; otherwise they are dropped.
            swaps_left_right: "left" and "right" change places in the caption of an image that an
                augmentation has mirrored.
            kwargs: of :class:`OpenVocabDatasetMapper`.
        """
        super().__init__(is_train, **kwargs)
        self.swaps_left_right = swaps_left_right

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """The keyword arguments that ``cfg`` asks for."""
        ret = super().from_config(cfg, is_train)
        return {**ret, "swaps_left_right": cfg.INPUT.SWAP_LEFT_RIGHT}

    @classmethod
    def targets_from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Nothing: phrases have no place in a vocabulary, and no teacher's regions.

        Raises:
            OVDError: a model that reads no captions, or the config names a region store.
        """
        if not reads_captions(cfg):
            raise OVDError(
                "INPUT.MAPPER GroundingMapper gives phrases of captions, which "
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} does not read: take GLIP, "
                "DetCLIP or MAVL, or data sets of classes with another mapper."
            )
        if cfg.DATASETS.REGION_STORE:
            raise OVDError(
                "INPUT.MAPPER GroundingMapper makes no use of DATASETS.REGION_STORE: set it to ''."
            )
        return {}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """
        Args:
            dataset_dict: one record; not modified.

        Returns:
            the record with ``image`` (C, H, W) uint8 in ``INPUT.FORMAT``, ``caption`` and, in
            training, ``instances``, see the class.

        Raises:
            UnreadableImageError: naming the file and the reason.
            OVDError: a training record has no caption, or a box is of a phrase that the caption
                lacks.
        """
        caption = dataset_dict.get("caption")
        if isinstance(caption, str):
            phrases = dataset_dict.get("phrases", ())
            caption = TokenSpans(caption, tuple(phrase["spans"] for phrase in phrases))
        if caption is None and not self.is_train:
            return super().__call__(dataset_dict)
        if not isinstance(caption, TokenSpans):
            raise OVDError(
                f"The record of {dataset_dict.get('file_name')} has no caption: INPUT.MAPPER "
                "GroundingMapper needs data sets of grounded captions."
            )
        # Without annotations an image still trains on its caption, as one without boxes.
        record = {"annotations": [], **dataset_dict, "caption": caption}
        for annotation in record["annotations"]:
            if not 0 <= annotation["category_id"] < len(caption):
                raise OVDError(
                    f"A box of {record['file_name']} belongs to phrase "
                    f"{annotation['category_id']}, but its caption has {len(caption)} phrases."
                )
        return super().__call__(record)

    def _transform_annotations(
        self, sample: dict[str, Any], transforms: T.Transform, image_shape: tuple[int, int]
    ) -> None:
        """Replaces ``annotations`` by ``instances``; the caption follows a mirrored image."""
        super()._transform_annotations(sample, transforms, image_shape)
        targets = sample["instances"]
        targets.gt_phrases = targets.gt_classes
        targets.remove("gt_classes")
        if self.swaps_left_right and _mirrors(transforms):
            sample["caption"] = swap_left_right(sample["caption"])


def _mirrors(transforms: T.Transform) -> bool:
    """Whether what was left of a point is now right of it."""
    points = np.array([[0.0, 0.0], [1.0, 0.0]])
    moved = transforms.apply_coords(points)
    return bool(moved[1, 0] < moved[0, 0])

"""Pools regions of one more feature map, for an image branch.

Letters: R regions over the batch, C x P x P a pooled region.
"""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn

from ovd_d2.errors import OVDError


class BranchPooler(nn.Module):
    """``MODEL.IMAGE_BRANCH.IN_FEATURE``, pooled as ``MODEL.ROI_BOX_HEAD`` says.

    Attributes:
        channels: C.
    """

    def __init__(self, feature: str, channels: int, pooler: ROIPooler) -> None:
        """
        Args:
            feature: name of the map.
            channels: of it.
            pooler: of one level, with the scale of that map.
        """
        super().__init__()
        self.feature = feature
        self.channels = channels
        self.pooler = pooler

    @classmethod
    def build(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> "BranchPooler":
        """From the config.

        Raises:
            OVDError: the backbone does not hand on that map.
        """
        feature, head = cfg.MODEL.IMAGE_BRANCH.IN_FEATURE, cfg.MODEL.ROI_BOX_HEAD
        if feature not in input_shape:
            raise OVDError(
                f"MODEL.IMAGE_BRANCH.IN_FEATURE is {feature}, the backbone hands on "
                f"{', '.join(input_shape)}: use MODEL.BACKBONE.NAME build_timm_fpn_backbone."
            )
        shape = input_shape[feature]
        pooler = ROIPooler(
            output_size=head.POOLER_RESOLUTION,
            scales=(1.0 / shape.stride,),
            sampling_ratio=head.POOLER_SAMPLING_RATIO,
            pooler_type=head.POOLER_TYPE,
        )
        return cls(feature, shape.channels, pooler)

    def forward(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """(R, C, P, P) of the backbone's ``features`` at ``boxes``, per image."""
        return self.pooler([features[self.feature]], boxes)

"""The last stages of a teacher's image tower as the second head of ViLD-ensemble.

Letters: R regions over the batch, D embedding width, C x P x P a pooled region.
"""

from detectron2.config import CfgNode
from torch import Tensor, nn

from ovd_d2.encoders.exported import teacher_tower
from ovd_d2.errors import OVDError
from ovd_d2.modeling.classifiers import EmbeddingClassifier

from .image_branch import IMAGE_BRANCH_REGISTRY, DistilledImageBranch, SecondHeadFactory
from .region_distiller import RegionDistiller


class TowerTail(nn.Module):
    """What a timm EfficientNet does after one of its feature maps: (R, C, P, P) -> (R, F).

    Batch norms keep their statistics: regions of a detector are no crops of photographs.
    """

    def __init__(self, net: nn.Module, stage: int):
        """
        Args:
            net: a timm EfficientNet without classifier, images -> (N, F); its last blocks become
                this module's.
            stage: how many of its ``blocks`` are left out.
        """
        super().__init__()
        self.blocks = nn.Sequential(*list(net.blocks)[stage:])
        self.conv_head, self.bn2 = net.conv_head, net.bn2
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_head(self.blocks(x))).mean(dim=(2, 3))

    def train(self, mode: bool = True) -> "TowerTail":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


@IMAGE_BRANCH_REGISTRY.register()
class TeacherTailBranch(DistilledImageBranch):
    """A :class:`DistilledImageBranch` that need not learn from nothing what its teacher knows.

    Its head and its projection are the teacher's own, on a map of the backbone,
    ``MODEL.IMAGE_BRANCH.IN_FEATURE``, in the place of a crop's map; then they are distilled like
    any second head. F-VLM (Kuo et al., ICLR 2023) scores regions by CLIP's frozen tower on pooled
    maps; here that is where learning begins.

    The backbone has to be the teacher's tower up to that map, ``MODEL.TIMM.WEIGHTS``, and to stay
    it, ``MODEL.TIMM.FREEZE_STAGES``; regions are pooled as large as a crop's map is.
    """

    @classmethod
    def build(cls, cfg: CfgNode, make_head: SecondHeadFactory) -> "TeacherTailBranch":
        """From ``MODEL.IMAGE_BRANCH``, ``MODEL.TIMM`` and ``MODEL.REGION_DISTILLATION``."""
        spec, feature = cfg.MODEL.IMAGE_BRANCH.TEACHER, cfg.MODEL.IMAGE_BRANCH.IN_FEATURE
        spec = spec or cfg.MODEL.OPEN_VOCAB.TEXT_ENCODER
        if spec != "mini-teacher" and not spec.startswith("exported:"):
            raise OVDError(
                f"TeacherTailBranch continues a teacher of ours, not {spec}: set "
                'MODEL.IMAGE_BRANCH.TEACHER to "mini-teacher" or "exported:FILE".'
            )
        tower = teacher_tower(spec)
        if not hasattr(getattr(tower, "backbone", None), "conv_head"):
            raise OVDError(f"MODEL.IMAGE_BRANCH.TEACHER {spec} is no EfficientNet of timm.")
        strides = [f"stride{info['reduction']}" for info in tower.backbone.feature_info]
        if feature not in strides:
            raise OVDError(
                f'MODEL.IMAGE_BRANCH.IN_FEATURE is "{feature}"; TeacherTailBranch needs one of '
                f"{', '.join(strides)}."
            )
        _check_backbone(cfg, spec, 1 + strides.index(feature), feature)
        module = tower.backbone.feature_info[strides.index(feature)]["module"]
        head = TowerTail(tower.backbone, 1 + int(module.split(".")[1]))
        width, dim = tower.projection.in_features, tower.projection.out_features
        projection = nn.Linear(width, dim)
        projection.weight.data.copy_(tower.projection.weight)
        nn.init.zeros_(projection.bias)
        classifier = EmbeddingClassifier(
            width,
            dim,
            logit_scale=cfg.MODEL.OPEN_VOCAB.LOGIT_SCALE,
            background="zero",
            projection=projection,
        )
        return cls(head, classifier, RegionDistiller(cfg))


def _check_backbone(cfg: CfgNode, spec: str, stages: int, feature: str) -> None:
    """Raises OVDError if the map is not, or does not stay, the teacher's. "" of an exported model
    says nothing of weights that are loaded later."""
    timm = cfg.MODEL.TIMM
    if timm.WEIGHTS not in ("", spec):
        raise OVDError(
            f"MODEL.TIMM.WEIGHTS is {timm.WEIGHTS}, but TeacherTailBranch goes on from {feature} "
            f"of {spec}: set it to that."
        )
    if timm.WEIGHTS and stages > timm.FREEZE_STAGES:
        raise OVDError(
            f"MODEL.TIMM.FREEZE_STAGES is {timm.FREEZE_STAGES}: {feature}, on which "
            f"TeacherTailBranch goes on, has to stay the teacher's; set it to {stages} or more."
        )

"""A second opinion on the class of a region, beside the text branch that owns the boxes.

Letters: R regions over the batch, Ri of image i, M regions with a teacher embedding, K classes,
D embedding width, C x P x P a pooled region.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList, Instances
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.language import TextEmbeddings, Vocabulary
from ovd_d2.losses import masked_softmax_cross_entropy
from ovd_d2.modeling.classifiers import EmbeddingClassifier, linear_projection

from .open_vocab_box_predictor import held_out
from .region_distiller import RegionDistiller

IMAGE_BRANCH_REGISTRY = Registry("IMAGE_BRANCH")
IMAGE_BRANCH_REGISTRY.__doc__ = """
Parts that ``MODEL.IMAGE_BRANCH.NAME`` names, built as ``Branch.build(cfg, head, width)``: ``head``
makes (R, ``width``) features of (R, C, P, P) pooled regions and has weights of its own.
"""


class ImageBranch(nn.Module):
    """What the ROI heads ask of a second opinion."""

    has_head = True
    needs_teacher_regions = False

    def check_vocabulary(self, embeddings: TextEmbeddings) -> None:
        """Raises OVDError if this branch cannot go with class ``embeddings`` that the text branch
        accepts."""

    def set_vocabulary(self, vocabulary: Vocabulary, embeddings: TextEmbeddings) -> None:
        """Swaps the K classes."""
        raise NotImplementedError

    def losses(
        self,
        pooled: Tensor,
        proposals: Sequence[Instances],
        pooled_regions: Tensor,
        regions: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """What the branch learns from a batch; every parameter gets a gradient.

        Args:
            pooled: (R, C, P, P) of the sampled proposals.
            proposals: per image, with ``gt_classes``.
            pooled_regions: (M, C, P, P) of the teacher's regions.
            regions: per image, with ``teacher_embedding``.
        """
        return {}

    def candidates(self, boxes: Tensor, objectness: Tensor) -> Tensor | None:
        """Rows of an image's boxes (Ri, 4) worth looking at, int64; None for all."""
        return None

    def probabilities(self, pooled: Tensor, boxes: list[Tensor], images: ImageList) -> list[Tensor]:
        """Per image (Ri, K): softmax over the names, without background.

        Args:
            pooled: (R, C, P, P) of the boxes the detector looked at.
            boxes: per image (Ri, 4), the boxes it predicts, absolute.
            images: as the detector gets them: normalised and padded.
        """
        raise NotImplementedError


class SecondHead(ImageBranch):
    """Convolutions, fully connected layers and projection of its own, on the pooled regions that
    the text branch sees too."""

    def __init__(self, head: nn.Module, classifier: EmbeddingClassifier):
        super().__init__()
        self.head = head
        self.cls_score = classifier

    def set_vocabulary(self, vocabulary: Vocabulary, embeddings: TextEmbeddings) -> None:
        """See :class:`ImageBranch`."""
        self.cls_score.set_class_embeddings(embeddings.embeddings, embeddings.encoder_id)

    def features(self, pooled: Tensor) -> Tensor:
        """(R, C, P, P) pooled regions -> (R, width)."""
        return self.head(pooled).flatten(1)

    def probabilities(self, pooled: Tensor, boxes: list[Tensor], images: ImageList) -> list[Tensor]:
        """See :class:`ImageBranch`; the regions are those that were pooled."""
        logits = self.cls_score(self.features(pooled))[:, :-1]
        return list(logits.softmax(dim=1).split([len(b) for b in boxes]))


@IMAGE_BRANCH_REGISTRY.register()
class DistilledImageBranch(SecondHead):
    """ViLD-ensemble's image branch: learns from the teacher's embeddings and nothing else.

    It sees base, novel and background regions alike, without a label, and never a background
    class: hence none in its softmax.
    """

    needs_teacher_regions = True

    def __init__(
        self, head: nn.Module, classifier: EmbeddingClassifier, distiller: RegionDistiller
    ):
        super().__init__(head, classifier)
        self.distiller = distiller

    @classmethod
    def build(cls, cfg: CfgNode, head: nn.Module, width: int) -> "DistilledImageBranch":
        """From ``MODEL.IMAGE_BRANCH`` and ``MODEL.REGION_DISTILLATION``."""
        return cls(head, _classifier(cfg, width, "zero"), RegionDistiller(cfg))

    def losses(
        self,
        pooled: Tensor,
        proposals: Sequence[Instances],
        pooled_regions: Tensor,
        regions: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """See :meth:`RegionDistiller.forward`."""
        return self.distiller(self.cls_score.embed(self.features(pooled_regions)), regions)


@IMAGE_BRANCH_REGISTRY.register()
class LabelledImageBranch(SecondHead):
    """The control of ViLD-ensemble: the same second head and the same combination of scores, but
    trained like the text branch, by cross entropy on the same sampled proposals with base labels
    (``loss_cls_image``), with a learned background vector of its own. The background takes part in
    that loss only; scores are over the names, as with :class:`DistilledImageBranch`."""

    def __init__(self, head: nn.Module, classifier: EmbeddingClassifier):
        super().__init__(head, classifier)
        self.register_buffer("excluded", torch.zeros(0, dtype=torch.bool), persistent=False)

    @classmethod
    def build(cls, cfg: CfgNode, head: nn.Module, width: int) -> "LabelledImageBranch":
        """From ``MODEL.IMAGE_BRANCH``."""
        return cls(head, _classifier(cfg, width, "learned"))

    def set_vocabulary(self, vocabulary: Vocabulary, embeddings: TextEmbeddings) -> None:
        """See :class:`ImageBranch`."""
        super().set_vocabulary(vocabulary, embeddings)
        self.excluded = held_out(vocabulary).to(self.cls_score.class_embeddings.device)

    def losses(
        self,
        pooled: Tensor,
        proposals: Sequence[Instances],
        pooled_regions: Tensor,
        regions: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """``loss_cls_image``: ViLD's text loss."""
        logits = self.cls_score(self.features(pooled))
        no_targets = logits.new_zeros(0, dtype=torch.int64)
        targets = torch.cat([no_targets, *(p.gt_classes for p in proposals)])
        return {"loss_cls_image": masked_softmax_cross_entropy(logits, targets, self.excluded)}


def _classifier(cfg: CfgNode, width: int, background: str) -> EmbeddingClassifier:
    open_vocab = cfg.MODEL.OPEN_VOCAB
    return EmbeddingClassifier(
        width,
        open_vocab.EMBED_DIM,
        logit_scale=open_vocab.LOGIT_SCALE,
        background=background,
        projection=linear_projection(
            width, open_vocab.EMBED_DIM, cfg.MODEL.IMAGE_BRANCH.PROJECTION_HIDDEN
        ),
    )


def image_branch_class(name: str) -> type[ImageBranch]:
    """The class that ``MODEL.IMAGE_BRANCH.NAME`` names.

    Raises:
        OVDError: there is none of that name.
    """
    if name not in IMAGE_BRANCH_REGISTRY:
        known = ", ".join(sorted(key for key, _ in IMAGE_BRANCH_REGISTRY))
        raise OVDError(f"MODEL.IMAGE_BRANCH.NAME is {name!r}; it must be '' or one of {known}.")
    return IMAGE_BRANCH_REGISTRY.get(name)

"""A second opinion on the class of a region, beside the text branch that owns the boxes.

Letters: R regions over the batch, Ri of image i, K classes, D embedding width, C x P x P a pooled
region.
"""

from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList, Instances
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.language import TextEmbeddings, Vocabulary
from ovd_d2.layers.row_softmax import row_softmax
from ovd_d2.losses import masked_softmax_cross_entropy
from ovd_d2.modeling.classifiers import EmbeddingClassifier, linear_projection
from ovd_d2.structures import Supervision

from .blocked_scores import MOST_DENSE_CLASSES, Opinion
from .blocked_scoring import opinions_of
from .open_vocab_box_predictor import held_out
from .region_distiller import RegionDistiller
from .region_task import RegionTask

# Makes a head of its own weights for (R, C, P, P) pooled regions, and says how wide its features
# are.
SecondHeadFactory = Callable[[], tuple[nn.Module, int]]

IMAGE_BRANCH_REGISTRY = Registry("IMAGE_BRANCH")
IMAGE_BRANCH_REGISTRY.__doc__ = """
Parts that ``MODEL.IMAGE_BRANCH.NAME`` names, built as ``Branch.build(cfg, make_head)`` with a
:data:`SecondHeadFactory`.
"""


class ImageBranch(nn.Module):
    """What the ROI heads ask of a second opinion. One that learns is a :class:`RegionTask` too.

    Attributes:
        looks_at_crops: it runs an image model of its own on every region's pixels.
    """

    looks_at_crops = False

    def check_vocabulary(self, embeddings: TextEmbeddings) -> None:
        """Raises OVDError if this branch cannot go with class ``embeddings`` that the text branch
        accepts."""

    def set_vocabulary(self, vocabulary: Vocabulary, embeddings: TextEmbeddings) -> None:
        """Swaps the K classes."""
        raise NotImplementedError

    def region_embeddings(self, pooled: Tensor) -> Tensor | None:
        """(R, C, P, P) pooled regions -> (R, D) L2-normalised, if it is this branch that learns
        from a teacher; None: the text branch's count."""
        return None

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

    def opinions(self, pooled: Tensor, boxes: list[Tensor], images: ImageList) -> list[Opinion]:
        """Per image what :meth:`probabilities` are made of, for more classes than fit."""
        raise OVDError(
            f"{type(self).__name__} cannot score classes in blocks: give it a method opinions, or "
            f"the model at most {MOST_DENSE_CLASSES} names."
        )


class SecondHead(ImageBranch, RegionTask):
    """Convolutions, fully connected layers and projection of its own, on the pooled regions that
    the text branch sees too, or on those of ``MODEL.IMAGE_BRANCH.IN_FEATURE``.

    Attributes:
        channels: so many of the last channels of a pooled region are this branch's; 0: all.
    """

    has_head = True

    def __init__(self, head: nn.Module, classifier: EmbeddingClassifier):
        super().__init__()
        self.channels = 0
        self.head = head
        self.cls_score = classifier

    def set_vocabulary(self, vocabulary: Vocabulary, embeddings: TextEmbeddings) -> None:
        """See :class:`ImageBranch`."""
        self.cls_score.set_class_embeddings(embeddings.embeddings, embeddings.encoder_id)

    def features(self, pooled: Tensor) -> Tensor:
        """(R, C, P, P) pooled regions -> (R, width)."""
        return self.head(pooled[:, -self.channels :]).flatten(1)

    def probabilities(self, pooled: Tensor, boxes: list[Tensor], images: ImageList) -> list[Tensor]:
        """See :class:`ImageBranch`; the regions are those that were pooled."""
        logits = self.cls_score(self.features(pooled))[:, :-1]
        return list(row_softmax(logits).split([len(b) for b in boxes]))

    def opinions(self, pooled: Tensor, boxes: list[Tensor], images: ImageList) -> list[Opinion]:
        """See :class:`ImageBranch`."""
        x = self.features(pooled)
        return opinions_of(self.cls_score, x, [len(b) for b in boxes], with_background=False)


@IMAGE_BRANCH_REGISTRY.register()
class DistilledImageBranch(SecondHead):
    """ViLD-ensemble's image branch: learns from the teacher's embeddings and nothing else.

    It sees base, novel and background regions alike, without a label, and never a background
    class: hence none in its softmax.
    """

    kind = Supervision.TEACHER_REGION

    def __init__(
        self, head: nn.Module, classifier: EmbeddingClassifier, distiller: RegionDistiller
    ):
        super().__init__(head, classifier)
        self.distiller = distiller

    @classmethod
    def build(cls, cfg: CfgNode, make_head: SecondHeadFactory) -> "DistilledImageBranch":
        """From ``MODEL.IMAGE_BRANCH`` and ``MODEL.REGION_DISTILLATION``."""
        head, width = make_head()
        return cls(head, _classifier(cfg, width, "zero"), RegionDistiller(cfg))

    def losses(
        self, predictor: nn.Module, features: Tensor, rows: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """See :meth:`RegionDistiller.losses`; the student is this branch's own ``cls_score``."""
        return self.distiller.losses(self, self.features(features), rows)

    def region_embeddings(self, pooled: Tensor) -> Tensor:
        """See :class:`ImageBranch`."""
        return self.cls_score.embed(self.features(pooled))


@IMAGE_BRANCH_REGISTRY.register()
class LabelledImageBranch(SecondHead):
    """The control of ViLD-ensemble: the same second head and the same combination of scores, but
    trained like the text branch, by cross entropy on the same sampled proposals with base labels
    (``loss_cls_image``), with a learned background vector of its own. The background takes part in
    that loss only; scores are over the names, as with :class:`DistilledImageBranch`."""

    kind = Supervision.BOX

    def __init__(self, head: nn.Module, classifier: EmbeddingClassifier):
        super().__init__(head, classifier)
        self.register_buffer("excluded", torch.zeros(0, dtype=torch.bool), persistent=False)

    @classmethod
    def build(cls, cfg: CfgNode, make_head: SecondHeadFactory) -> "LabelledImageBranch":
        """From ``MODEL.IMAGE_BRANCH``."""
        head, width = make_head()
        return cls(head, _classifier(cfg, width, "learned"))

    def set_vocabulary(self, vocabulary: Vocabulary, embeddings: TextEmbeddings) -> None:
        """See :class:`ImageBranch`."""
        super().set_vocabulary(vocabulary, embeddings)
        self.excluded = held_out(vocabulary).to(self.cls_score.class_embeddings.device)

    def losses(
        self, predictor: nn.Module, features: Tensor, rows: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """``loss_cls_image``: ViLD's text loss."""
        logits = self.cls_score(self.features(features))
        no_targets = logits.new_zeros(0, dtype=torch.int64)
        targets = torch.cat([no_targets, *(p.gt_classes for p in rows)])
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

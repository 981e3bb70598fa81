"""How several opinions on the class of a region become one score.

Letters: R regions, K classes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ovd_d2.errors import OVDError


def text_exponents(is_novel: list[bool], base_weight: float, fixed_weight: float) -> Tensor:
    """How much the text branch counts in the ensemble, per class.

    ViLD, section 3.4: ``base_weight`` (2/3) for base and 1 - ``base_weight`` for novel classes:
    the text branch has seen boxes of base classes, the image branch is as good on both. A
    vocabulary that marks no class as novel (another data set, the user's own words) says nothing
    about which classes had boxes; there all classes have ``fixed_weight`` (0.6 in DetPro, the
    exponent of the text branch).

    Returns:
        (K,) float64.
    """
    if not any(is_novel):
        return torch.full((len(is_novel),), float(fixed_weight), dtype=torch.float64)
    novel = torch.tensor(is_novel, dtype=torch.bool)
    base = torch.full(novel.shape, float(base_weight), dtype=torch.float64)
    return torch.where(novel, 1 - base, base)


def ensemble_probabilities(
    text: Tensor, image: Tensor, of_text: Tensor, of_image: Tensor
) -> Tensor:
    """``text ** of_text * image ** of_image``, not normalised again: a weighted geometric mean
    where the two exponents sum to 1.

    Args:
        text: (R, K) probabilities in [0, 1].
        image: (R, K) the same.
        of_text: (K,) exponents, at least 0.
        of_image: (K,) the same.

    Returns:
        (R, K); 0 where a branch with an exponent above 0 says 0.
    """
    logarithms = torch.xlogy(of_text.to(text), text) + torch.xlogy(of_image.to(text), image)
    return logarithms.exp()


def with_objectness(probabilities: Tensor, objectness: Tensor) -> Tensor:
    """Geometric mean ``sqrt(p * objectness)``: the score of classes that know no background.

    ViLD's for CLIP on cropped proposals. Used for ViLD-image too, whose head is trained by
    distillation alone: its softmax over the names is as sure on background as anywhere else.
    CenterNet2 and Detic on LVIS combine sigmoids so (``MODEL.OPEN_VOCAB.MULT_PROPOSAL_SCORE``).

    Args:
        probabilities: (R, K) in [0, 1].
        objectness: (R,) in [0, 1], sigmoid of the RPN's logit.
    """
    return (probabilities * objectness[:, None]).sqrt()


def with_objectness_for(text: Tensor, objectness: Tensor, chosen: Tensor) -> Tensor:
    """(R, K) ``text``, in the ``chosen`` columns (K,) bool the regions' ``objectness`` (R,).

    A text branch that was trained with novel things as background calls them background; the RPN
    never asks which class a thing is of.
    """
    return torch.where(chosen, objectness[:, None], text)


class ClassWeights(NamedTuple):
    """How an ensemble of branches scores each class.

    Attributes:
        text: (K,) float64 exponents of the text branch, or of what takes its place.
        image: (K,) float64 exponents of the image branch.
        by_objectness: (K,) bool: objectness takes the place of the text branch.
    """

    text: Tensor
    image: Tensor
    by_objectness: Tensor


class ScoreRule(nn.Module):
    """What a region scores for a class, from the opinions that there are."""

    @configurable
    def __init__(
        self,
        *,
        combine: str,
        base_weight: float = 2.0 / 3.0,
        fixed_weight: float = 0.6,
        novel_partner: str = "text",
        novel_power: float = 1.0,
    ):
        """
        Args:
            combine: "ensemble" (:func:`ensemble_probabilities`, ViLD-ensemble), or "objectness"
                (:func:`with_objectness` of the image branch, or, without one, of the text branch).
            base_weight: see :func:`text_exponents`.
            fixed_weight: the same.
            novel_partner: whose probability an ensemble averages with the image branch's for novel
                classes: "text" (ViLD) or "objectness", see :func:`with_objectness_for`.
            novel_power: what an ensemble's scores of novel classes are raised to, above 0. The
                order of a class's detections, and with it AP, stays; above 1 its scores get
                lower, so that one threshold can fit base and novel classes.
        """
        super().__init__()
        if combine not in ("ensemble", "objectness"):
            raise OVDError(
                f'MODEL.IMAGE_BRANCH.SCORES is "{combine}"; use "ensemble" or "objectness".'
            )
        if novel_partner not in ("text", "objectness"):
            raise OVDError(
                f'MODEL.IMAGE_BRANCH.NOVEL_PARTNER is "{novel_partner}"; use "text" or '
                '"objectness".'
            )
        if not novel_power > 0:
            raise OVDError(f"MODEL.IMAGE_BRANCH.NOVEL_POWER is {novel_power}; it must be above 0.")
        for key, weight in (("LAMBDA", base_weight), ("FIXED_WEIGHT", fixed_weight)):
            if not 0 <= weight <= 1:
                raise OVDError(f"MODEL.IMAGE_BRANCH.{key} is {weight}; it must be in [0, 1].")
        self.combine = combine
        self.base_weight = base_weight
        self.fixed_weight = fixed_weight
        self.novel_partner = novel_partner
        self.novel_power = novel_power

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        branch = cfg.MODEL.IMAGE_BRANCH
        return {
            "combine": branch.SCORES,
            "base_weight": branch.LAMBDA,
            "fixed_weight": branch.FIXED_WEIGHT,
            "novel_partner": branch.NOVEL_PARTNER,
            "novel_power": branch.NOVEL_POWER,
        }

    def forward(
        self, text: Tensor, image: Tensor | None, objectness: Tensor, is_novel: list[bool]
    ) -> Tensor:
        """
        Args:
            text: (R, K + 1) probabilities of the text branch, background last.
            image: (R, K) of the image branch; None without one.
            objectness: (R,) in [0, 1].
            is_novel: (K,) of the vocabulary.

        Returns:
            (R, K + 1) scores in [0, 1]; the last column is 0.
        """
        weights = None if self.combine == "objectness" else self.class_weights(is_novel)
        return F.pad(self.fused(text[:, :-1], image, objectness, weights), (0, 1))

    def class_weights(self, is_novel: list[bool]) -> ClassWeights:
        """Those of an ensemble."""
        text = text_exponents(is_novel, self.base_weight, self.fixed_weight)
        novel = torch.tensor(is_novel, dtype=torch.bool)
        powers = torch.where(novel, self.novel_power, 1.0).double()
        chosen = novel if self.novel_partner == "objectness" else torch.zeros_like(novel)
        return ClassWeights(text * powers, (1 - text) * powers, chosen)

    def share_exponents(self, is_novel: list[bool]) -> Tensor:
        """(K,) float: what the classes' shares of a softmax are raised to in their scores."""
        if self.combine == "objectness":
            return torch.full((len(is_novel),), 0.5)  # a square root, see with_objectness
        weights = self.class_weights(is_novel)
        shares = torch.where(weights.by_objectness, 0.0, weights.text) + weights.image
        return shares.float()

    def fused(
        self,
        text: Tensor,
        image: Tensor | None,
        objectness: Tensor,
        weights: ClassWeights | None,
    ) -> Tensor:
        """(R, K) scores of classes alone, from (R, K) probabilities of each branch, (R,) objectness
        and, of an ensemble, :meth:`class_weights`."""
        if self.combine == "objectness":
            return with_objectness(text if image is None else image, objectness)
        assert image is not None, "an ensemble needs an image branch"
        assert weights is not None, "an ensemble needs weights"
        if self.novel_partner == "objectness":
            text = with_objectness_for(text, objectness, weights.by_objectness.to(text.device))
        return ensemble_probabilities(text, image, weights.text, weights.image)

"""Pixels against class embeddings.

Letters: N images, K classes, D embedding width, C channels, h and w sides of the map.

Source: Li et al. 2022, "Language-driven Semantic Segmentation", section 3.
"""

from torch import Tensor, nn

from ovd_d2.layers.spatial_regulariser import SpatialRegulariser
from ovd_d2.layers.word_pixel_correlation import (
    unit_pixel_correlation,
    unit_pixels,
    word_pixel_correlation,
)

from .embedding_classifier import EmbeddingClassifier


class PixelClassifier(EmbeddingClassifier):
    """Projects every pixel to the text space (1x1 convolution), compares it with the class
    embeddings, and lets a regulariser smooth the result.

    There is no background column: a class of that meaning is a word like the others. The class
    embeddings are no part of the state dict; the id of their encoder is, see
    :class:`EmbeddingClassifier`.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dim: int,
        *,
        logit_scale: float = 1 / 0.07,
        regulariser: SpatialRegulariser | None = None,
        half: bool = False,
    ) -> None:
        """
        Args:
            in_channels: C.
            embed_dim: D.
            logit_scale: factor on the cosine, fixed; no exp applied.
            regulariser: (N, K, h, w) -> the same; None: none.
            half: see :func:`word_pixel_correlation`.
        """
        projection = nn.Conv2d(in_channels, embed_dim, 1)
        super().__init__(
            in_channels,
            embed_dim,
            logit_scale=logit_scale,
            background="zero",
            projection=projection,
        )
        self.regulariser = regulariser
        self.half_precision = half

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (N, C, h, w) features.
            classes: (K, D), or (N, K, D) of each image's own classes; None: those that were set.

        Returns:
            (N, K, h, w) fp32 logits, logit scale applied.
        """
        words = self.class_embeddings if classes is None else classes
        logits = word_pixel_correlation(
            self.projection(x), words, self.logit_scale, half=self.half_precision
        )
        return logits if self.regulariser is None else self.regulariser(logits)

    @property
    def is_linear(self) -> bool:
        """Whether logits are linear in :meth:`unit_pixels`."""
        return self.regulariser is None and not self.half_precision

    def unit_pixels(self, x: Tensor) -> Tensor:
        """(N, C, h, w) features -> (N, D, h, w) fp32, projected, of norm 1."""
        return unit_pixels(self.projection(x))

    def logits_of(self, pixels: Tensor, classes: Tensor) -> Tensor:
        """Logits where :attr:`is_linear`.

        Args:
            pixels: (N, D, h, w) fp32: :meth:`unit_pixels`, or resized, or sums of such.
            classes: (K, D).

        Returns:
            (N, K, h, w) fp32.
        """
        return unit_pixel_correlation(pixels, classes, self.logit_scale)

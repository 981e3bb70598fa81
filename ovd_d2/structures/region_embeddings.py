"""What a teacher knows about the regions of one image.

Letters: Ri regions of image i, D embedding width.
"""

from dataclasses import dataclass

from torch import Tensor

from ovd_d2.errors import OVDError


@dataclass(frozen=True, eq=False)
class RegionEmbeddings:
    """Regions of one image with their embeddings; Ri may be 0.

    Attributes:
        boxes: (Ri, 4) float32, absolute xyxy in pixels of the original image, before any
            augmentation.
        embeddings: (Ri, D) floating point (float16 in a store), rows of L2 norm 1.
        scores: (Ri,) float32, higher is a better region; None where the proposals had none.

    Raises:
        OVDError: the shapes do not fit together.
    """

    boxes: Tensor
    embeddings: Tensor
    scores: Tensor | None = None

    def __post_init__(self) -> None:
        regions = len(self.boxes) if self.boxes.ndim else -1
        fits = self.boxes.shape == (regions, 4) and self.embeddings.ndim == 2
        fits = fits and len(self.embeddings) == regions
        if not fits or (self.scores is not None and self.scores.shape != (regions,)):
            scores = None if self.scores is None else tuple(self.scores.shape)
            raise OVDError(
                "the regions of an image must be boxes (R, 4), embeddings (R, D) and scores (R,) "
                f"or None, not {tuple(self.boxes.shape)}, {tuple(self.embeddings.shape)}, {scores}"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: slice | Tensor) -> "RegionEmbeddings":
        """The chosen rows: a slice, (n,) integer indices or an (Ri,) bool mask."""
        scores = None if self.scores is None else self.scores[rows]
        return RegionEmbeddings(self.boxes[rows], self.embeddings[rows], scores)

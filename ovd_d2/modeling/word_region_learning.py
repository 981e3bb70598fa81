"""Learning from image-text pairs: words and regions of all processes (DetCLIPv2, section 3.3).

Letters: N pairs of this process, G pairs of all, Q regions of an image, W words of a text, D
embedding width.
"""

import hashlib
from collections.abc import Sequence

import torch
from detectron2.utils import comm
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ovd_d2.errors import OVDError
from ovd_d2.layers.gather_rows import gather_rows
from ovd_d2.losses import image_to_text_similarity, set_similarity, smoothed_contrastive_loss
from ovd_d2.losses.word_region import check_match

DIRECTIONS = ("text_to_image", "image_to_text", "both")


class WordRegionLearning:
    """The contrastive loss of texts and the regions of images.

    Texts choose images: an image's other regions need not be named by its caption, so the other
    direction harms (the paper's table 4). Pairs of equal captions are no negatives of each other.
    """

    def __init__(
        self,
        *,
        match: str = "best",
        match_temperature: float = 1.0,
        direction: str = "text_to_image",
        temperature: float = 0.5,
        label_smoothing: float = 0.1,
        weight: float = 0.1,
    ) -> None:
        """
        Args:
            match: see :func:`set_similarity`.
            match_temperature: of "softmax".
            direction: "text_to_image", "image_to_text" or "both" (their mean).
            temperature: of the contrastive loss.
            label_smoothing: of the contrastive loss.
            weight: of it in the sum.

        Raises:
            OVDError: unknown direction or match.
        """
        check_match(match)
        if direction not in DIRECTIONS:
            raise OVDError(
                f"direction is {direction!r}; it must be one of {', '.join(DIRECTIONS)}."
            )
        self.match = match
        self.match_temperature = match_temperature
        self.direction = direction
        self.temperature = temperature
        self.label_smoothing = label_smoothing
        self.weight = weight

    def __call__(
        self,
        regions: Tensor,
        region_mask: Tensor,
        areas: Tensor,
        words: Sequence[Tensor],
        captions: Sequence[str],
    ) -> dict[str, Tensor]:
        """
        Args:
            regions: (N, Q, D), scaled.
            region_mask: (N, Q) bool; at least one per image.
            areas: (N, Q) float, of their boxes.
            words: per text (Wi, D) of norm 1, Wi >= 1.
            captions: N; equal ones are told by them.

        Returns:
            "loss_word_region", weight applied. The mean over the processes is the loss of one
            process that holds all G pairs. Every process must have N pairs.
        """
        digests = caption_digests(captions, regions.device)
        left_out = digests[:, None] == gather_rows(digests)[None]
        targets = torch.arange(len(regions), device=regions.device)
        targets = targets + comm.get_rank() * len(regions)
        text, text_mask = _padded(words)
        similarities = []
        with torch.autocast(regions.device.type, enabled=False):
            if self.direction != "image_to_text":
                similarities.append(
                    set_similarity(
                        text,
                        text_mask,
                        gather_rows(regions),
                        gather_rows(region_mask),
                        match=self.match,
                        softmax_temperature=self.match_temperature,
                        areas=gather_rows(areas),
                    )  # fmt: skip
                )
            if self.direction != "text_to_image":
                similarities.append(
                    image_to_text_similarity(
                        regions, region_mask, gather_rows(text), gather_rows(text_mask)
                    )
                )
            losses = [
                smoothed_contrastive_loss(
                    similarity, targets, temperature=self.temperature,
                    label_smoothing=self.label_smoothing, left_out=left_out,
                )
                for similarity in similarities
            ]  # fmt: skip
            return {"loss_word_region": self.weight * sum(losses) / len(losses)}


def _padded(words: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(N, W, D) and (N, W) bool, W the longest in any process."""
    longest = max(comm.all_gather(max(map(len, words))))
    rows = pad_sequence(list(words), batch_first=True)
    rows = torch.nn.functional.pad(rows, (0, 0, 0, longest - rows.shape[1]))
    lengths = torch.tensor([len(w) for w in words], device=rows.device)
    return rows, torch.arange(longest, device=rows.device) < lengths[:, None]


def caption_digests(captions: Sequence[str], device: torch.device) -> Tensor:
    """(N,) int64: equal captions have equal numbers, in every process."""
    digests = [hashlib.sha256(caption.encode()).digest()[:8] for caption in captions]
    return torch.tensor([int.from_bytes(d, "big", signed=True) for d in digests], device=device)

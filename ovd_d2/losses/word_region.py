"""Word-region contrastive learning from image-text pairs (DetCLIPv2, section 3.3).

Letters: T texts of this process, G images of all processes, W words of a text (here: a caption and
its noun phrases), Q regions of an image, D embedding width.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ovd_d2.errors import OVDError

MATCHES = ("best", "softmax", "largest")
_AT_ONCE = 1 << 25  # products of a word and a region held at a time


def set_similarity(
    words: Tensor,
    word_mask: Tensor,
    regions: Tensor,
    region_mask: Tensor,
    *,
    match: str = "best",
    softmax_temperature: float = 1.0,
    areas: Tensor | None = None,
    at_once: int = _AT_ONCE,
) -> Tensor:
    """How well an image shows a text: the mean over its words of their match among the regions.

    Args:
        words: (T, W, D) float.
        word_mask: (T, W) bool, True on words that are there; at least one per text.
        regions: (G, Q, D) float, scaled.
        region_mask: (G, Q) bool; at least one per image.
        match: what a word's match is. "best": its largest product with a region (the paper's
            final choice). "softmax": the mean of its products, weighted by their softmax.
            "largest": its product with the largest region of the image.
        softmax_temperature: of those weights.
        areas: (G, Q) float, of the regions, for "largest".
        at_once: products held at a time; more are computed in parts, again in backward.

    Returns:
        (T, G) fp32.

    Raises:
        OVDError: unknown ``match``.
    """
    check_match(match)
    words, regions = words.float(), regions.float()
    if match == "largest":
        largest = areas.masked_fill(~region_mask, -1).argmax(dim=1)
        regions = regions[torch.arange(len(regions), device=regions.device), largest][:, None]
        region_mask = region_mask.new_ones(len(regions), 1)
    temperature = softmax_temperature if match == "softmax" else 0.0
    step = max(at_once // max(words.shape[:2].numel() * regions.shape[1], 1), 1)
    if step >= len(regions):
        return _of_some_images(words, word_mask, regions, region_mask, temperature)
    parts = [
        checkpoint(
            _of_some_images, words, word_mask, regions[i : i + step], region_mask[i : i + step],
            temperature, use_reentrant=False, preserve_rng_state=False,
        )
        for i in range(0, len(regions), step)
    ]  # fmt: skip
    return torch.cat(parts, dim=1)


def check_match(match: str) -> None:
    """Raises OVDError unless ``match`` is one of ``MATCHES``."""
    if match not in MATCHES:
        raise OVDError(f"match is {match!r}; it must be one of {', '.join(MATCHES)}.")


def _of_some_images(
    words: Tensor, word_mask: Tensor, regions: Tensor, region_mask: Tensor, temperature: float
) -> Tensor:
    products = torch.einsum("twd,gqd->tgwq", words, regions)
    products = products.masked_fill(~region_mask[:, None], -torch.inf)
    if temperature:
        weights = (products / temperature).softmax(dim=3)
        matches = (weights * products.masked_fill(~region_mask[:, None], 0.0)).sum(dim=3)
    else:
        matches = products.amax(dim=3)  # (T, G, W)
    matches = matches.masked_fill(~word_mask[:, None], 0.0)
    return matches.sum(dim=2) / word_mask.sum(dim=1)[:, None]


def image_to_text_similarity(
    regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor
) -> Tensor:
    """The mean over an image's regions of their best word, FILIP's other direction; arguments as of
    :func:`set_similarity`, with the images of this process and the texts of all. (G, T) fp32."""
    return set_similarity(regions, region_mask, words, word_mask)


def smoothed_contrastive_loss(
    similarity: Tensor,
    targets: Tensor,
    *,
    temperature: float = 0.5,
    label_smoothing: float = 0.1,
    left_out: Tensor | None = None,
) -> Tensor:
    """Cross entropy of every row with its own column, label smoothing over the columns that count.

    Args:
        similarity: (T, G) float, rows of this process, columns of all.
        targets: (T,) int64, column of each row.
        temperature: tau; logits are similarity / tau.
        label_smoothing: share of the target that is spread over all columns that count.
        left_out: (T, G) bool, columns that are no negatives of a row (an equal text); its own
            column counts whatever it says. None: all count.

    Returns:
        Scalar fp32, mean over the rows; 0 with a gradient path if T = 0.
    """
    logits = similarity.float() / temperature
    if not len(logits):
        return logits.sum()
    own = torch.zeros_like(logits, dtype=torch.bool)
    own[torch.arange(len(logits), device=logits.device), targets] = True
    counts = torch.ones_like(own) if left_out is None else ~left_out | own
    log_p = logits.masked_fill(~counts, -torch.inf).log_softmax(dim=1)
    spread = log_p.masked_fill(~counts, 0.0).sum(dim=1) / counts.sum(dim=1)
    return -((1 - label_smoothing) * log_p[own] + label_smoothing * spread).mean()

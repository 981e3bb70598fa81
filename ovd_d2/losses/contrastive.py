"""CLIP's symmetric contrastive loss (InfoNCE).

Letters: N pairs of this process, G pairs of all processes, D embedding width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def symmetric_contrastive_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    *,
    all_image_embeddings: Tensor | None = None,
    all_text_embeddings: Tensor | None = None,
    offset: int = 0,
    same_text: Tensor | None = None,
) -> Tensor:
    """0.5 * (image -> text + text -> image cross entropy), all other pairs being negatives
    (Radford et al. 2021, figure 3).

    With the embeddings of all processes given, it is this process's share: the mean of the shares
    over the processes is the loss of one process that holds all G pairs.

    Args:
        image_embeddings: (N, D) float, L2-normalised; row i belongs to text i.
        text_embeddings: (N, D) float, L2-normalised.
        logit_scale: factor on the cosine (exp applied), a scalar.
        all_image_embeddings: (G, D) of all processes in the order of their ranks; None: G = N.
        all_text_embeddings: (G, D), as above.
        offset: place of row 0 of this process among the G.
        same_text: (N, G) bool: pairs whose texts are equal are left out as negatives of each
            other; None: they are negatives, as in CLIP.

    Returns:
        Scalar, mean over the N pairs; 0 (with a gradient path) if N = 0.
    """
    if len(image_embeddings) == 0:
        return (image_embeddings.sum() + text_embeddings.sum()) * 0.0
    all_images = image_embeddings if all_image_embeddings is None else all_image_embeddings
    all_texts = text_embeddings if all_text_embeddings is None else all_text_embeddings
    targets = torch.arange(len(image_embeddings), device=image_embeddings.device) + offset
    image_logits = logit_scale * image_embeddings @ all_texts.T
    text_logits = logit_scale * text_embeddings @ all_images.T
    if same_text is not None:
        others = same_text.clone()
        others[torch.arange(len(targets), device=targets.device), targets] = False
        image_logits = image_logits.masked_fill(others, -torch.inf)
        text_logits = text_logits.masked_fill(others, -torch.inf)
    return 0.5 * (F.cross_entropy(image_logits, targets) + F.cross_entropy(text_logits, targets))

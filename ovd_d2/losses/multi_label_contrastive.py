"""Contrastive loss of images that have several texts each (Xu et al. 2022, "GroupViT", section
3.2).

Letters: N images of this process, G images of all, P texts of an image (prompted nouns of its
caption), D embedding width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ovd_d2.errors import OVDError

FORMS = ("soft_targets", "log_sum")


def multi_label_contrastive_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    *,
    form: str = "soft_targets",
    all_image_embeddings: Tensor | None = None,
    all_text_embeddings: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """0.5 * (image -> its texts + each text -> its image), all other pairs being negatives.

    The mean over processes with as many images each is the loss of one that holds all.

    Args:
        image_embeddings: (N, D) float, L2-normalised.
        text_embeddings: (N, P, D) float, L2-normalised, P >= 1.
        logit_scale: factor on the cosine (exp applied), a scalar.
        form: of image -> its texts. "soft_targets": cross entropy with 1/P on each own text, as in
            the public code; "log_sum": minus the logarithm of all own texts' share together, the
            paper's form. Text -> image is the same in both; the paper adds the two directions,
            where this is their mean.
        all_image_embeddings: (G, D) of all processes in the order of their ranks; None: G = N.
        all_text_embeddings: (G, P, D), as above.
        offset: place of row 0 of this process among the G.

    Returns:
        Scalar; 0 (with a gradient path) if N = 0.

    Raises:
        OVDError: an unknown form.
    """
    if form not in FORMS:
        raise OVDError(f"form is {form!r}; it must be {' or '.join(FORMS)}.")
    count, per_image = text_embeddings.shape[:2]
    if count == 0:
        return (image_embeddings.sum() + text_embeddings.sum()) * 0.0
    all_images = image_embeddings if all_image_embeddings is None else all_image_embeddings
    all_texts = text_embeddings if all_text_embeddings is None else all_text_embeddings
    own = torch.arange(count, device=image_embeddings.device) + offset
    log_p = (logit_scale * image_embeddings @ all_texts.flatten(0, 1).T).log_softmax(dim=1)
    of_own = log_p.unflatten(1, (-1, per_image))[torch.arange(count, device=own.device), own]
    to_texts = of_own.mean() if form == "soft_targets" else of_own.logsumexp(dim=1).mean()
    text_logits = logit_scale * text_embeddings.flatten(0, 1) @ all_images.T
    to_images = F.cross_entropy(text_logits, own.repeat_interleave(per_image))
    return 0.5 * (to_images - to_texts)

"""One call to change the classes of any model of ours."""

from torch import nn

from ovd_d2.errors import OVDError
from ovd_d2.language import EmbeddingsLike, Vocabulary, VocabularyLike


def _owner(model: nn.Module) -> nn.Module | None:
    """The part of ``model`` that owns the vocabulary: itself or its ROI heads, through DDP."""
    model = getattr(model, "module", model)
    for part in (model, getattr(model, "roi_heads", None)):
        if part is not None and hasattr(part, "set_vocabulary"):
            return part
    return None


def get_vocabulary(model: nn.Module) -> Vocabulary | None:
    """The present classes of ``model``; None for closed-set models."""
    owner = _owner(model)
    return None if owner is None else owner.vocabulary


def set_vocabulary(
    model: nn.Module, vocabulary: VocabularyLike, embeddings: EmbeddingsLike
) -> None:
    """Swaps the classes of ``model``.

    Args:
        model: a detector with open-vocabulary ROI heads, possibly wrapped by DDP.
        vocabulary: the K new classes: a :class:`Vocabulary`, a list of names, or names between
            commas.
        embeddings: their (K, D) embeddings, by the encoder the model was trained with, or what
            gives them (see :func:`ovd_d2.language.class_space`).

    Raises:
        OVDError: closed-set model, or embeddings that do not fit; the model is unchanged then.
    """
    owner = _owner(model)
    if owner is None:
        raise OVDError(
            f"{type(model).__name__} has a fixed set of classes: set MODEL.ROI_HEADS.NAME to an "
            "open-vocabulary head such as OpenVocabROIHeads."
        )
    owner.set_vocabulary(vocabulary, embeddings)

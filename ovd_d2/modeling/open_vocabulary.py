"""The vocabulary protocol: one owner of the classes, whatever the model is made of."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.language import (
    ClassEmbedderLike,
    Vocabulary,
    VocabularyLike,
    as_class_embedder,
    as_vocabulary,
)


@runtime_checkable
class OpenVocabularyModel(Protocol):
    """A meta-architecture, or the ROI heads of one, whose classes are words that can be swapped.

    How words become numbers is its business: by a ``class_embedder`` (see
    :class:`~ovd_d2.language.ClassEmbedder`), which then is an attribute of that name, or by
    reading them.
    """

    vocabulary: Vocabulary | None

    def set_vocabulary(self, vocabulary: VocabularyLike | None) -> None:
        """Swaps the classes; None: there are none any more.

        Raises:
            OVDError: they cannot be had; the model is unchanged then.
        """


class FindsObjects(OpenVocabularyModel, Protocol):
    """A model that finds objects of any class while ``vocabulary`` is None; ``pred_classes`` are 0
    then.

    Attributes:
        finds_objects: True.
    """

    finds_objects: bool


class SeesExamples(Protocol):
    """A model that says what it sees in boxes, in the space of its class embeddings: of it classes
    can be made by visual examples.

    ROI heads say it by ``region_embeddings``, everybody else by this. ``class_embedder`` then is
    one that may be exchanged (see :func:`set_vocabulary`); a model that mixes examples and words
    in another way than :class:`~ovd_d2.language.example_rows.Mixing` has an ``example_mixing``.
    """

    def embed_examples(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """What is in boxes of an image, and around them.

        Args:
            image: (3, H, W), as ``image`` of the model's input.
            boxes: (R, 4) x0 y0 x1 y1, absolute, in the frame of ``image``.

        Returns:
            (R, D) of L2 norm 1, and (D,), the mean over all that the model looks at in ``image``.
        """


def part_with(model: nn.Module, attribute: str) -> Any:
    """The model (unwrapped of DDP) or its ROI heads, whichever has ``attribute``; None if neither
    has, or has it as None."""
    model = getattr(model, "module", model)
    for part in (model, getattr(model, "roi_heads", None)):
        if getattr(part, attribute, None) is not None:
            return part
    return None


def is_open_vocabulary(model: nn.Module) -> bool:
    """Whether the classes of ``model``, possibly wrapped by DDP, can be swapped."""
    return part_with(model, "set_vocabulary") is not None


def get_vocabulary(model: nn.Module) -> Vocabulary | None:
    """The present classes of ``model``; None for closed-set models and before any were set."""
    owner = part_with(model, "set_vocabulary")
    return None if owner is None else owner.vocabulary


def set_vocabulary(
    model: nn.Module,
    vocabulary: VocabularyLike | None,
    class_embedder: ClassEmbedderLike | None = None,
) -> None:
    """Swaps the classes of ``model``.

    Args:
        model: a detector, possibly wrapped by DDP.
        vocabulary: the K new classes: a :class:`Vocabulary`, a list of names, or names between
            commas; None: no classes.
        class_embedder: embeds them from now on instead of the model's own embedder; ready
            embeddings of exactly these names will do.

    Raises:
        OVDError: closed-set model, or classes that cannot be had; the model is unchanged then.
    """
    owner = part_with(model, "set_vocabulary")
    if owner is None:
        raise OVDError(
            f"{type(model).__name__} has a fixed set of classes: set MODEL.ROI_HEADS.NAME to an "
            "open-vocabulary head such as OpenVocabROIHeads."
        )
    if vocabulary is not None:
        vocabulary = as_vocabulary(vocabulary)
    if class_embedder is None:
        owner.set_vocabulary(vocabulary)
        return
    if getattr(owner, "class_embedder", None) is None:
        raise OVDError(
            f"{type(owner).__name__} makes its class embeddings itself: leave class_embedder out."
        )
    before = owner.class_embedder
    owner.class_embedder = as_class_embedder(class_embedder)
    try:
        owner.set_vocabulary(vocabulary)
    except Exception:
        owner.class_embedder = before
        raise

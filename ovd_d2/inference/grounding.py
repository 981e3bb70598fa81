"""Phrases of a caption -> boxes, by a model that reads captions.

Letters: R detections, H, W height and width of a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import nn

from ovd_d2.errors import OVDError
from ovd_d2.language.noun_phrases import AUTO, noun_phrase_finder
from ovd_d2.modeling.open_vocabulary import part_with
from ovd_d2.structures.grounding import Span, TokenSpans


@dataclass(frozen=True)
class Grounding:
    """Where the phrases of a caption are in one picture.

    Attributes:
        image: (H, W, 3) uint8, RGB, EXIF orientation applied.
        caption: the text and its phrases.
        instances: R detections in the frame of ``image``, on the CPU, best first: ``pred_boxes``,
            ``scores`` in 0..1, and ``pred_classes``, places in ``caption.spans``.
    """

    image: np.ndarray
    caption: TokenSpans
    instances: Instances

    def best(self, count: int) -> "Grounding":
        """The same with the ``count`` best boxes of each phrase at most."""
        phrases = self.instances.pred_classes
        of_phrase = F.one_hot(phrases, len(self.caption.spans)).cumsum(dim=0)
        rank = of_phrase.gather(1, phrases[:, None]).flatten()
        return replace(self, instances=self.instances[rank <= count])


def check_reads_captions(model: nn.Module) -> None:
    """Raises OVDError unless ``model`` takes samples with a ``caption``."""
    if part_with(model, "reads_captions") is None:
        raise OVDError(
            f"{model._get_name()} finds classes and reads no captions: ground with a GLIP, a "
            "DetCLIP or a Grounding DINO, or name what to look for by set_vocabulary."
        )


def as_caption(
    caption: str | TokenSpans,
    spans: Sequence[Span] | Sequence[Sequence[Span]] | None = None,
    noun_phrases: str = AUTO,
) -> TokenSpans:
    """A caption with the phrases to look for.

    Args:
        caption: the text, or text and phrases.
        spans: [begin, end) characters of each phrase, or a list of them for a phrase in pieces;
            None: the noun phrases.
        noun_phrases: how those are found, see :func:`noun_phrase_finder`.

    Raises:
        OVDError: a span outside the text, or a caption without a noun phrase.
    """
    if isinstance(caption, TokenSpans):
        return caption
    if not isinstance(caption, str) or not caption.strip():
        raise OVDError("caption is empty; write what to look for, such as 'a cat on a red chair'.")
    if spans is None:
        spans = noun_phrase_finder(noun_phrases)(caption)
        if not spans:
            raise OVDError(
                f"caption {caption!r} has no noun phrase to look for: name a thing, or give spans."
            )
    return TokenSpans(caption, tuple(_pieces(span) for span in spans))


def _pieces(span: Sequence) -> tuple:
    """The spans of one phrase."""
    whole = len(span) == 2 and all(isinstance(place, int) for place in span)
    return (tuple(span),) if whole else tuple(span)

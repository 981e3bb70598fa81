"""Detections with attributes: "cat" becomes "striped cat" (ViLD, section 4.5 and its appendix).

Letters: Ri detections of image i, R over the batch, K names, A attributes, D embedding width.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary
from ovd_d2.language.attributes import attribute_probabilities, vocabulary_product
from ovd_d2.modeling.open_vocabulary import part_with

PHRASE = "{} object"  # what is embedded for an attribute, inside the config's prompts


def attribute_phrases(attributes: Sequence[str]) -> Vocabulary:
    """The A phrases to embed: "red object", "striped object", ..."""
    return Vocabulary.from_names([PHRASE.format(attribute) for attribute in attributes])


class AttributeExpansion:
    """A detector whose classes are names times attributes.

    A detection of name v with score p(v | r) becomes one of "a v", a its best attribute, with
    score p(v | r) p(a | r); the score threshold is that of p(v | r). The region is embedded by the
    branch that has learned from an image-text teacher, where there is one: labels of base names
    teach no attribute.

    Attributes:
        vocabulary: the K * A names, in the order of :func:`vocabulary_product`.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Vocabulary,
        attributes: Sequence[str],
        embeddings: Tensor | None = None,
        room: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        """
        Args:
            model: a ``GeneralizedRCNN`` with ovd_d2's ROI heads, in eval mode.
            names: its K names.
            attributes: A distinct words.
            embeddings: (A, D), any norm, of :func:`attribute_phrases`; None: by the model's own
                class embedder.
            room: inside of it the model finds ``names`` alone.

        Raises:
            OVDError: attributes that are empty or repeated, or a model without region embeddings.
        """
        self.vocabulary = vocabulary_product(names, attributes)
        self._heads = part_with(model, "region_embeddings")
        if self._heads is None or (
            embeddings is None and not hasattr(self._heads, "class_embedder")
        ):
            raise OVDError(
                f"{type(model).__name__} gives no embeddings of regions, which attributes need: "
                "use a detector with ovd_d2's ROI heads."
            )
        self._model, self._room = model, room
        if embeddings is None:
            embedder = self._heads.class_embedder
            embeddings = embedder.embed(attribute_phrases(attributes)).embeddings
        self._embeddings = embeddings.to(model.device)

    def detect(self, samples: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """As ``model(samples)``; ``pred_classes`` are in [0, K * A), best scores first."""
        model, seen = self._model, {}
        hook = model.backbone.register_forward_hook(
            lambda module, args, features: seen.update(features)
        )
        try:
            with self._room():
                results = model.inference(samples, do_postprocess=False)
        finally:
            hook.remove()
        embedded = self._heads.region_embeddings(seen, [r.pred_boxes for r in results])
        p = attribute_probabilities(embedded, self._embeddings, self._heads.logit_scale)
        best, attribute = p.max(dim=1)
        rows = zip(results, best.split(_sizes(results)), attribute.split(_sizes(results)))
        expanded = [self._expanded(*row) for row in rows]
        return model._postprocess(expanded, samples, [found.image_size for found in results])

    def _expanded(self, found: Instances, best: Tensor, attribute: Tensor) -> Instances:
        found.pred_classes = found.pred_classes * len(self._embeddings) + attribute
        found.scores = found.scores * best
        return found[torch.argsort(found.scores, descending=True, stable=True)]


def _sizes(results: Sequence[Instances]) -> list[int]:
    return [len(found) for found in results]

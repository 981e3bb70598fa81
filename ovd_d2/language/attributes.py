"""Systematic expansion of a vocabulary with attributes (ViLD): "red mug", "blue mug", ...

Letters: R regions, K class names, A attribute phrases, D embedding width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.language.vocabulary import Vocabulary


def expand_with_attributes(class_probabilities: Tensor, attribute_probabilities: Tensor) -> Tensor:
    """``p(v_i, a_j | r) = p(v_i | r) p(a_j | r)``: name and attribute are taken as independent.

    Args:
        class_probabilities: (R, K), softmax over the names.
        attribute_probabilities: (R, A), softmax over the attribute phrases.

    Returns:
        (R, K * A), name by name, in the order of :func:`vocabulary_product`. A background column
        is not expanded: leave it out before.

    Raises:
        OVDError: another number of regions in the two.
    """
    if len(class_probabilities) != len(attribute_probabilities):
        raise OVDError(
            f"Class probabilities are of {len(class_probabilities)} regions, attribute "
            f"probabilities of {len(attribute_probabilities)}: give both of the same regions."
        )
    product = class_probabilities[:, :, None] * attribute_probabilities[:, None, :]
    return product.flatten(1)


def attribute_probabilities(
    region_embeddings: Tensor, attribute_embeddings: Tensor, logit_scale: float = 100.0
) -> Tensor:
    """p(a | r): softmax of scaled cosines over the attribute phrases.

    Args:
        region_embeddings: (R, D), any norm.
        attribute_embeddings: (A, D), any norm: of phrases such as "a red object".
        logit_scale: factor on the cosine; as MODEL.OPEN_VOCAB.LOGIT_SCALE.

    Returns:
        (R, A).
    """
    regions = torch.nn.functional.normalize(region_embeddings.float(), dim=1)
    attributes = torch.nn.functional.normalize(attribute_embeddings.float(), dim=1)
    return (logit_scale * regions @ attributes.T).softmax(dim=1)


def vocabulary_product(vocabulary: Vocabulary, attributes: Sequence[str]) -> Vocabulary:
    """The K * A names "attribute name", name by name: "red mug", "blue mug", "red hat", ...

    Each has its name's synonyms (with the attribute), definition and novelty, so that it can be
    given to ``set_vocabulary`` as it is, or name the columns of :func:`expand_with_attributes`.
    Image counts are unknown.

    Raises:
        OVDError: no attribute, an empty or repeated one, or two pairs that read the same.
    """
    words = tuple(attribute.strip() for attribute in attributes)
    if not words or not all(words) or len(set(words)) < len(words):
        raise OVDError(f"Attributes must be distinct and not empty, not {list(attributes)}.")
    rows = range(len(vocabulary))
    return Vocabulary(
        names=tuple(f"{word} {vocabulary.names[k]}" for k in rows for word in words),
        synonyms=tuple(
            tuple(f"{word} {synonym}" for synonym in vocabulary.synonyms[k])
            for k in rows
            for word in words
        ),
        definitions=tuple(vocabulary.definitions[k] for k in rows for _ in words),
        is_novel=tuple(vocabulary.is_novel[k] for k in rows for _ in words),
    )

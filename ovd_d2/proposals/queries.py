"""Box proposers that query a detector with text.

Letters: P queries, Ri boxes of a query on image i, H, W height and width of an image.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from ovd_d2.language import Vocabulary, fill
from ovd_d2.pseudo_labelling import CLASS_QUERY, Found


class QueryDetector(Protocol):
    """A detector that is asked in words.

    Attributes:
        name: for the label file; names weights by their digest.
    """

    name: str

    def __call__(self, image: Tensor, queries: Sequence[str]) -> list[Found]:
        """Boxes for each of P queries, whose scores do not depend on the other queries.

        Args:
            image: (3, H, W) uint8, RGB.
            queries: such as "every cat".
        """
        ...


def class_queries(vocabulary: Vocabulary) -> list[str]:
    """Queries "every {name}" for each of K classes, of its cleaned name (RKD, section 3.3)."""
    return [fill(CLASS_QUERY, name) for name in vocabulary.names]


class AskedInWords:
    """A :class:`~ovd_d2.proposals.proposer.BoxProposer` that asks a detector for classes, or for
    objects in several wordings (MAVL, section 3).

    Args:
        detector: is asked.
        queries: one for each of K classes; those of the wanted classes are asked, all where no
            classes are named.

    Attributes:
        queries: the same.
    """

    has_scores = True

    def __init__(self, detector: QueryDetector, queries: Sequence[str]) -> None:
        self._detector, self.queries = detector, tuple(queries)
        self.name = detector.name

    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int] | None = None
    ) -> list[Found]:
        """Boxes of one image, as :class:`~ovd_d2.proposals.proposer.BoxProposer` defines them."""
        queries = self.queries if classes is None else [self.queries[k] for k in classes]
        return self._detector(image, queries)

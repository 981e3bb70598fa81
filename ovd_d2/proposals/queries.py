"""Proposers that ask a detector in words.

Letters: H, W height and width of an image; Ri boxes of a query.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from ovd_d2.language import Vocabulary, fill
from ovd_d2.pseudo_labelling.box_choice import CLASS_QUERY, OBJECT_QUERIES, Found


class QueryDetector(Protocol):
    """A detector that is asked in words.

    Attributes:
        name: for the label file; names weights by their digest.
    """

    name: str

    def __call__(self, image: Tensor, queries: Sequence[str]) -> list[Found]:
        """Boxes for each query, whose scores do not depend on the other queries.

        Args:
            image: (3, H, W) uint8, RGB.
            queries: such as "every cat".
        """
        ...


class AskedForLabels:
    """Asks a detector for "every {name}" of each label of an image (RKD, section 3.3)."""

    has_scores = True

    def __init__(
        self, detector: QueryDetector, vocabulary: Vocabulary, wording: str = CLASS_QUERY
    ) -> None:
        """
        Args:
            detector: is asked.
            vocabulary: K classes.
            wording: of the query; ``{}`` is the cleaned name.
        """
        self._detector = detector
        self._queries = tuple(fill(wording, name) for name in vocabulary.names)
        self.name = detector.name

    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int] | None = None
    ) -> list[Found]:
        """See :class:`~ovd_d2.proposals.proposer.BoxProposer`."""
        return self._detector(image, [self._queries[k] for k in classes])


class AskedForObjects:
    """Asks a detector for whatever is there, in several wordings (MAVL, section 3)."""

    has_scores = True

    def __init__(self, detector: QueryDetector, queries: Sequence[str] = OBJECT_QUERIES) -> None:
        """
        Args:
            detector: is asked.
            queries: what for.
        """
        self._detector = detector
        self._queries = tuple(queries)
        self.name = detector.name

    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int] | None = None
    ) -> list[Found]:
        """See :class:`~ovd_d2.proposals.proposer.BoxProposer`."""
        return self._detector(image, self._queries)

"""Classes by visual examples: from what a model sees in example boxes to rows of class embeddings.

Letters: K classes, D embedding width.

Words and examples compete for every region, but regions resemble regions far more than they
resemble words. On mini (ViLD-ensemble, val) the cosine of a region with its own name is 0.17, with
a region of its class 0.84, and with a region of any other class still 0.53. Rows that are plain
means of examples therefore win everywhere: with the 40 novel classes by 5 examples and the 120 base
classes by their names, AP_base falls from 20.8 to 0.1. What regions have in common (the gap between
the modalities) is taken out, and what names have in common is put in its place:

    row = unit((1 - s) t + s unit(unit(mean of examples) - around)),   s = 0.3

``around`` is the mean of all regions that the model looks at in the example images, ``t`` the mean
direction of the names that the model knows, mixed with 0.2 of the class's own name where that is
one of them. AP_base / AP_novel of the mixed vocabulary, 5 examples, on that half of val which they
are not from (names alone: 20.8 / 8.5):

    plain mean of examples        0.1 / 17.2
    s = 0.5                      14.3 / 16.6
    s = 0.3                      20.0 / 17.6      with 0.2 of the own name: 19.4 / 18.5
    s = 0.2                      20.6 / 12.4
    0.5 own name + 0.5 examples   2.3 / 15.5

All 160 classes by 5 examples: 26.9 / 21.4, with 0.2 of the own name 30.9 / 20.8.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ovd_d2.language.class_embedder import ClassEmbedder
from ovd_d2.language.known_names import known_rows
from ovd_d2.language.text_embeddings import TextEmbeddings
from ovd_d2.language.vocabulary import Vocabulary


class Mixing(NamedTuple):
    """How examples and words are mixed.

    Attributes:
        strength: s in [0, 1].
        own_name: share of a class's own name in t, in [0, 1].
    """

    strength: float = 0.3
    own_name: float = 0.2


def example_rows(means: Tensor, around: Tensor, words: Tensor, strength: float) -> Tensor:
    """The formula at the top.

    Args:
        means: (K, D) mean of the unit vectors of each class's examples.
        around: (D,) mean of the unit vectors of the regions of the example images.
        words: (K, D) t of each class.
        strength: s.

    Returns:
        (K, D) of L2 norm 1.
    """
    own = normalize(normalize(means, dim=1) - around, dim=1)
    return normalize((1 - strength) * words + strength * own, dim=1)


def word_directions(
    names: Sequence[str], embedder: ClassEmbedder, trained: Vocabulary | None, own_name: float
) -> Tensor:
    """(K, D) t of each name.

    Args:
        names: K names of classes with examples.
        embedder: of words.
        trained: what the model was trained with; None: not known, and the 80 names of COCO stand
            for what names have in common.
        own_name: share of its own name in t, where ``trained`` knows it.

    Raises:
        OVDError: the words cannot be embedded.
    """
    reference = trained or coco_names()
    known = embedder.embed(reference).embeddings.double()
    common = normalize(known.mean(dim=0), dim=0)
    directions = common.repeat(len(names), 1)
    for k, row in enumerate(known_rows(names, trained) if trained else ()):
        if row is not None:
            directions[k] = (1 - own_name) * common + own_name * known[row]
    return directions


def coco_names() -> Vocabulary:
    """The 80 names of COCO."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    return Vocabulary.from_names([c["name"] for c in COCO_CATEGORIES if c["isthing"]])


@dataclass(frozen=True)
class ExampleEmbedder:
    """A class embedder for vocabularies of words and examples.

    Attributes:
        words: embeds the names that have no row.
        rows: of the names that have examples.
    """

    words: ClassEmbedder
    rows: TextEmbeddings

    @property
    def encoder_id(self) -> str:
        """Whose space the rows are in: that of the words."""
        return self.words.encoder_id

    def embed(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """See :class:`~ovd_d2.language.ClassEmbedder`."""
        place = {name: row for row, name in enumerate(self.rows.names)}
        others = [k for k, name in enumerate(vocabulary.names) if name not in place]
        by_row = [k for k, name in enumerate(vocabulary.names) if name in place]
        found = torch.empty(len(vocabulary), self.rows.dim)
        found[by_row] = self.rows.embeddings[[place[vocabulary.names[k]] for k in by_row]]
        if others:
            found[others] = self.words.embed(part_of(vocabulary, others)).embeddings
        return TextEmbeddings(found, vocabulary.names, self.encoder_id)


def part_of(vocabulary: Vocabulary, rows: list[int]) -> Vocabulary:
    """The classes of these numbers."""
    fields = ("names", "synonyms", "definitions", "is_novel", "image_counts")
    values = {field: getattr(vocabulary, field) for field in fields}
    return replace(vocabulary, **{f: tuple(v[k] for k in rows) for f, v in values.items() if v})

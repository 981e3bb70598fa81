"""The classes that a model was trained with, embedded once for all vocabularies that have some.

Letters: K classes, D embedding width.
"""

import math
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ovd_d2.language.class_embedder import ClassEmbedder
from ovd_d2.language.example_rows import part_of
from ovd_d2.language.known_names import known_rows
from ovd_d2.language.text_embeddings import TextEmbeddingBank, TextEmbeddings
from ovd_d2.language.vocabulary import Vocabulary

CLOSE = 0.99  # quantile of the cosines among classes from which a class may be a kind of another
_MOST = 2000  # classes that it is estimated from
_AT_ONCE = 4096  # names that are compared with all classes
_FEWEST_PAIRS = 100  # from fewer no hundredth can be told: nothing is close then


class KnownRows:
    """A class embedder that has the rows of a model's training vocabulary in memory, from the first
    time on that it is asked.

    Args:
        words: embeds all other names, and those of ``trained`` once.
        trained: the vocabulary that the model was trained with.
        file: their rows by :meth:`TextEmbeddingBank.write`, if there is one: another encoder,
            prompts or synonyms than those of ``words`` are noticed. None: ``words`` embeds them.
    """

    def __init__(self, words: ClassEmbedder, trained: Vocabulary, file: Path | None = None) -> None:
        self.words = words
        self._trained = trained
        self._file = file

    @property
    def encoder_id(self) -> str:
        """Whose space the rows are in: that of ``words``."""
        return self.words.encoder_id

    @cached_property
    def _rows(self) -> Tensor:
        found = None
        if self._file is not None and isinstance(self.words, TextEmbeddingBank):
            found = self.words.read(self._file, self._trained)
        return (found or self.words.embed(self._trained)).embeddings

    @cached_property
    def _places(self) -> dict[tuple, int]:
        return {key: row for row, key in enumerate(_keys(self._trained))}

    @cached_property
    def _close(self) -> float:
        some = self._rows[:: -(-len(self._rows) // _MOST)]
        cosines = some @ some.T
        pairs = cosines[torch.triu(torch.ones_like(cosines, dtype=torch.bool), diagonal=1)]
        return float(pairs.quantile(CLOSE)) if len(pairs) >= _FEWEST_PAIRS else math.inf

    def close_to(self, vocabulary: Vocabulary, embedder: ClassEmbedder | None = None) -> set[int]:
        """Rows of the training vocabulary that are about what a class of ``vocabulary`` is, one
        that it does not have: at least as close to it as the closest hundredth of its own pairs.

        A sunflower is a flower and should not take a flower's share; a tangerine is no lemon, if
        the model has learned about both.

        Args:
            vocabulary: classes that are looked for.
            embedder: makes their rows, such as those of examples; None: this.
        """
        rows = known_rows(vocabulary.names, self._trained)
        unknown = [k for k, row in enumerate(rows) if row is None]
        if not unknown:
            return set()
        # All of them: so embeds who sets the vocabulary next, and a cache on disk has the answer.
        found, close = (embedder or self).embed(vocabulary).embeddings, set()
        for some in torch.tensor(unknown).split(_AT_ONCE):
            near = (found[some] @ self._rows.T >= self._close).any(dim=0)
            close.update(near.nonzero().flatten().tolist())
        return close

    def embed(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """See :class:`~ovd_d2.language.ClassEmbedder`. A class is known if name, synonyms and
        definition are those of the training vocabulary."""
        places = [self._places.get(key) for key in _keys(vocabulary)]
        known = [k for k, row in enumerate(places) if row is not None]
        others = [k for k, row in enumerate(places) if row is None]
        if not known:
            return self.words.embed(vocabulary)
        found = torch.empty(len(vocabulary), self._rows.shape[1])
        found[known] = self._rows[[places[k] for k in known]]
        if others:
            found[others] = self.words.embed(part_of(vocabulary, others)).embeddings
        return TextEmbeddings(found, vocabulary.names, self.encoder_id)


def _keys(vocabulary: Vocabulary) -> list[tuple]:
    return list(zip(vocabulary.names, vocabulary.synonyms, vocabulary.definitions))

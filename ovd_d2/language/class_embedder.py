"""Class embedders: the part of a model that turns the names of a vocabulary into vectors.

Letters: K classes, D embedding width.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ovd_d2.errors import OVDError
from ovd_d2.language.novel_names import read_novel_names
from ovd_d2.language.text_embeddings import (
    TextEmbeddingBank,
    TextEmbeddings,
    load_text_embeddings,
)
from ovd_d2.language.vocabulary import Vocabulary

LATER = "later"  # as MODEL.OPEN_VOCAB.VOCABULARY: classes come by set_vocabulary
_FILES = (".npy", ".safetensors")


class ClassEmbedder(Protocol):
    """What a model that scores against an embedding matrix asks for its rows:
    :class:`TextEmbeddingBank`, :class:`EmbeddingFile`, :class:`GivenEmbeddings`,
    :class:`RandomEmbeddings`, or one of your own."""

    @property
    def encoder_id(self) -> str:
        """Which encoder's space the rows are in."""

    def embed(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """The (K, D) embeddings of ``vocabulary``, in its order.

        Raises:
            OVDError: it cannot be embedded.
        """


@dataclass(frozen=True)
class EmbeddingFile:
    """Class embeddings that a file holds; see :func:`load_text_embeddings`.

    Attributes:
        path: .npy or .safetensors.
    """

    path: str

    @property
    def encoder_id(self) -> str:
        """By the file's manifest."""
        return load_text_embeddings(self.path).encoder_id

    def embed(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """See :class:`ClassEmbedder`; the file must be one for ``vocabulary``."""
        return load_text_embeddings(self.path, vocabulary)


@dataclass(frozen=True)
class GivenEmbeddings:
    """Class embeddings that are ready, of one vocabulary: of visual examples, for instance.

    Attributes:
        embeddings: (K, D) and K names.
    """

    embeddings: TextEmbeddings

    @property
    def encoder_id(self) -> str:
        """Who made them."""
        return self.embeddings.encoder_id

    def embed(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """See :class:`ClassEmbedder`; for the names they were made for alone."""
        if tuple(self.embeddings.names) != vocabulary.names:
            raise OVDError(
                f"The embeddings are of {len(self.embeddings)} names that differ from the "
                f"vocabulary's {len(vocabulary)}: compute them from this vocabulary, or give the "
                "model a class_embedder that knows other names, such as a TextEmbeddingBank."
            )
        return self.embeddings


@dataclass(frozen=True)
class RandomEmbeddings:
    """Directions without a meaning, the same for a name whenever and wherever it is asked for: for
    speed tests and tests.

    Attributes:
        dim: D.
    """

    dim: int

    @property
    def encoder_id(self) -> str:
        """ "random:D"."""
        return f"random:{self.dim}"

    def embed(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """See :class:`ClassEmbedder`."""
        rows = [self._row(name) for name in vocabulary.names]
        return TextEmbeddings(torch.stack(rows), vocabulary.names, self.encoder_id)

    def _row(self, name: str) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
        return torch.randn(self.dim, generator=torch.Generator().manual_seed(seed))


VocabularyLike = Vocabulary | str | os.PathLike | Sequence[str]
ClassEmbedderLike = ClassEmbedder | TextEmbeddings | str | os.PathLike


def as_class_embedder(value: ClassEmbedderLike) -> ClassEmbedder:
    """A class embedder from what stands in a config or a LazyConfig node; nothing is embedded yet.

    Args:
        value: a :class:`ClassEmbedder`; ready :class:`TextEmbeddings`; a .npy or .safetensors file;
            or an encoder ("openai-clip:ViT-B/32"), which gets the prompts of a bank.

    Raises:
        OVDError: another type.
    """
    if isinstance(value, TextEmbeddings):
        return GivenEmbeddings(value)
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        return EmbeddingFile(path) if Path(path).suffix in _FILES else TextEmbeddingBank(path)
    if callable(getattr(value, "embed", None)):  # encoder_id may have to load what it identifies
        return value
    raise OVDError(
        f"class_embedder is a {type(value).__name__}; give a TextEmbeddingBank or another "
        "ClassEmbedder, TextEmbeddings, the path of a .npy or .safetensors file, or a text encoder "
        "such as openai-clip:ViT-B/32."
    )


def as_vocabulary(value: VocabularyLike) -> Vocabulary:
    """Classes from what a user has at hand.

    Args:
        value: a :class:`Vocabulary`, a list of names, a string for :meth:`Vocabulary.load`
            ("cat, red mug", "dataset:NAME", a .txt or .json file), or such a file's path.

    Raises:
        OVDError: another type, or names that cannot be had.
    """
    if isinstance(value, Vocabulary):
        return value
    if isinstance(value, str):
        return Vocabulary.load(value)
    if isinstance(value, os.PathLike):
        return Vocabulary.from_file(value)
    no_names = isinstance(
        value, bytes | Mapping
    )  # a mapping may bring examples: not lost in silence
    if isinstance(value, Iterable) and not no_names:  # omegaconf's ListConfig too
        return Vocabulary.from_names(list(value))
    raise OVDError(
        f"vocabulary is {value!r}; give names in a string or a list, a .txt or .json file, "
        '"dataset:NAME", or a Vocabulary.'
    )


def configured_vocabulary(
    spec: str, train_datasets: Sequence[str], novel_names: Sequence[str] = ()
) -> Vocabulary | None:
    """The classes that a configuration names.

    Args:
        spec: MODEL.OPEN_VOCAB.VOCABULARY; "" means the names of ``train_datasets[0]``, "later" that
            there are none yet.
        train_datasets: DATASETS.TRAIN.
        novel_names: DATASETS.NOVEL_NAMES, names or files of names; empty: the vocabulary says.

    Raises:
        OVDError: no names, or names that cannot be had.
    """
    if spec == LATER:
        return None
    if not spec and not train_datasets:
        raise OVDError(
            "no class names: set MODEL.OPEN_VOCAB.VOCABULARY, or a data set in DATASETS.TRAIN"
        )
    classes = Vocabulary.load(spec or f"dataset:{train_datasets[0]}")
    return classes.with_novel(read_novel_names(novel_names))


def configured_class_embedder(
    text_embeddings: str, text_encoder: str, prompts: str, use_synonyms: bool, device: str
) -> ClassEmbedder:
    """The embedder that a configuration names; it loads nothing before it is asked.

    Args:
        text_embeddings: MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS, a file; "": the others count.
        text_encoder: MODEL.OPEN_VOCAB.TEXT_ENCODER.
        prompts: MODEL.OPEN_VOCAB.PROMPTS.
        use_synonyms: MODEL.OPEN_VOCAB.USE_SYNONYMS.
        device: where an encoder computes; the CPU where there is no GPU.
    """
    if text_embeddings:
        return EmbeddingFile(text_embeddings)
    device = device if torch.cuda.is_available() else "cpu"
    return TextEmbeddingBank(text_encoder, prompts, use_synonyms, device=device)

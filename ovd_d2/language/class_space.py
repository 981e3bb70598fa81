"""Class names and their embeddings from what a user has at hand.

Letters: K classes, D embedding width.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from ovd_d2.errors import OVDError
from ovd_d2.language.text_embeddings import (
    TextEmbeddingBank,
    TextEmbeddings,
    load_text_embeddings,
)
from ovd_d2.language.vocabulary import Vocabulary

VocabularyLike = Vocabulary | str | Sequence[str]
EmbeddingsLike = TextEmbeddings | TextEmbeddingBank | str | os.PathLike

_FILES = (".npy", ".safetensors")


def class_space(
    vocabulary: VocabularyLike, embeddings: EmbeddingsLike
) -> tuple[Vocabulary, TextEmbeddings]:
    """K classes and their (K, D) embeddings; what is ready is returned as it is.

    All of it but the ready objects can stand in a LazyConfig node, which then runs nothing until
    it is instantiated.

    Args:
        vocabulary: a :class:`Vocabulary`, a list of names, or a string for
            :meth:`Vocabulary.load` ("cat, red mug", "dataset:NAME", a .txt or .json file).
        embeddings: of these classes: ready ones, a bank that computes them, a .npy or .safetensors
            file, or an encoder ("openai-clip:ViT-B/32"), which gets the prompts of a bank.

    Raises:
        OVDError: another type, or what reading and embedding raise.
    """
    vocabulary = _vocabulary(vocabulary)
    if isinstance(embeddings, TextEmbeddings):
        return vocabulary, embeddings
    if isinstance(embeddings, str | os.PathLike):
        if Path(embeddings).suffix in _FILES:
            return vocabulary, load_text_embeddings(embeddings, vocabulary)
        embeddings = TextEmbeddingBank(os.fspath(embeddings))
    if isinstance(embeddings, TextEmbeddingBank):
        return vocabulary, embeddings.embed(vocabulary)
    raise OVDError(
        f"text_embeddings is a {type(embeddings).__name__}; give TextEmbeddings, a "
        "TextEmbeddingBank, the path of a .npy or .safetensors file, or a text encoder such as "
        "openai-clip:ViT-B/32."
    )


def _vocabulary(value: VocabularyLike) -> Vocabulary:
    if isinstance(value, Vocabulary):
        return value
    if isinstance(value, str):
        return Vocabulary.load(value)
    if isinstance(value, Sequence):  # omegaconf's ListConfig is one
        return Vocabulary.from_names(list(value))
    raise OVDError(
        f"vocabulary is {value!r}; give a Vocabulary, a list of names, or names between commas."
    )

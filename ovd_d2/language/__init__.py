"""Words to vectors: vocabularies, prompts and the cached bank of embeddings."""

from ovd_d2.language.attributes import (
    attribute_probabilities,
    expand_with_attributes,
    vocabulary_product,
)
from ovd_d2.language.class_embedder import (
    LATER,
    ClassEmbedder,
    ClassEmbedderLike,
    EmbeddingFile,
    GivenEmbeddings,
    RandomEmbeddings,
    VocabularyLike,
    as_class_embedder,
    as_vocabulary,
    configured_class_embedder,
    configured_vocabulary,
)
from ovd_d2.language.concept_dictionary import ConceptDictionary
from ovd_d2.language.novel_names import novel_flags, read_novel_names
from ovd_d2.language.prompts import PROMPT_SETS, article, clean_name, fill, load_prompts
from ovd_d2.language.text_embeddings import (
    TextEmbeddingBank,
    TextEmbeddings,
    load_text_embeddings,
)
from ovd_d2.language.vocabulary import Vocabulary

__all__ = [
    "LATER",
    "PROMPT_SETS",
    "ClassEmbedder",
    "ClassEmbedderLike",
    "ConceptDictionary",
    "EmbeddingFile",
    "GivenEmbeddings",
    "RandomEmbeddings",
    "as_class_embedder",
    "as_vocabulary",
    "configured_class_embedder",
    "configured_vocabulary",
    "TextEmbeddingBank",
    "TextEmbeddings",
    "Vocabulary",
    "VocabularyLike",
    "article",
    "attribute_probabilities",
    "clean_name",
    "expand_with_attributes",
    "fill",
    "load_prompts",
    "load_text_embeddings",
    "novel_flags",
    "read_novel_names",
    "vocabulary_product",
]

"""Concepts of a batch: what the text encoder reads of each name, and which names an image is
trained with.

Letters: K classes, M concepts.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ovd_d2.language.concept_dictionary import ConceptDictionary
from ovd_d2.language.prompts import clean_name
from ovd_d2.language.vocabulary import Vocabulary
from ovd_d2.structures.grounding import TokenSpans

_LONGEST_NAME = 6  # words of a dictionary's name that is looked for in captions
Concepts = dict[str, str]  # cleaned name -> text that the encoder reads; in order


class ConceptPrompts:
    """Names -> texts, "name, definition" where a definition is known (concept enrichment, DetCLIP
    section 3.2), and positive and negative names of training images.

    Two names that are equal when cleaned are one concept, whatever their data sets.
    """

    def __init__(self, dictionary: ConceptDictionary, *, enrich: bool = True) -> None:
        """
        Args:
            dictionary: definitions of names that bring none, and negatives of grounding data.
            enrich: False: texts are names alone.
        """
        self.dictionary = dictionary
        self.enrich = enrich

    def text(self, name: str, definition: str = "") -> str:
        """What the encoder reads of a concept.

        Args:
            name: any spelling.
            definition: instead of the dictionary's; "": the dictionary's.

        Raises:
            OVDError: nothing is left of the name when cleaned.
        """
        if not self.enrich:
            return clean_name(name)
        return self.dictionary.text(name, definition or None)

    def for_vocabulary(self, vocabulary: Vocabulary) -> list[str]:
        """The K texts of a vocabulary, its own definitions first."""
        return [self.text(*pair) for pair in zip(vocabulary.names, vocabulary.definitions)]

    def of_classes(
        self,
        present: Tensor,
        vocabulary: Vocabulary,
        *,
        negatives: Tensor,
        most: int,
        generator: torch.Generator | None = None,
    ) -> Concepts:
        """Concepts of an image of a detection data set: its classes, then negatives.

        Args:
            present: class numbers of its boxes, int64, any number of each.
            vocabulary: K classes.
            negatives: classes that are known to be absent where they have no box, int64.
            most: concepts of the image; those present always stay.
            generator: of the CPU; None: torch's own.
        """
        shown = present.unique().cpu()
        absent = negatives[~torch.isin(negatives, shown)]
        order = torch.randperm(len(absent), generator=generator)
        drawn = absent[order[: max(most - len(shown), 0)]]
        numbers = [*shown.tolist(), *drawn.tolist()]
        return self._unique(
            (vocabulary.names[k], self.text(vocabulary.names[k], vocabulary.definitions[k]))
            for k in numbers
        )

    def of_phrases(
        self,
        phrases: Sequence[str],
        *,
        most: int,
        caption: str = "",
        generator: torch.Generator | None = None,
    ) -> Concepts:
        """Concepts of an image of a grounding data set: its phrases, then names of the dictionary
        that its caption does not say.

        Args:
            phrases: of its caption.
            most: concepts of the image; its phrases always stay.
            caption: "cat" is no negative of "a cat on a mat"; "": the phrases alone are excluded.
            generator: of the CPU; None: torch's own.
        """
        concepts = self._unique((phrase, self.text(phrase)) for phrase in phrases)
        drawn = self.dictionary.sample(
            max(most - len(concepts), 0), exclude=[*concepts, *_word_runs(caption)],
            generator=generator,
        )  # fmt: skip
        return concepts | {name: self.text(name) for name in drawn}

    @staticmethod
    def _unique(pairs: Iterable[tuple[str, str]]) -> Concepts:
        found: Concepts = {}
        for name, text in pairs:
            found.setdefault(clean_name(name), text)
        return found


def names_in(caption: TokenSpans) -> set[str]:
    """Cleaned names that a caption says: its phrases, its words and runs of some words."""
    return {clean_name(phrase) for phrase in caption.phrases()} | _word_runs(caption.caption)


def _word_runs(text: str) -> set[str]:
    """Every word of a text and every run of some words, in lower case."""
    words = re.findall(r"[\w'-]+", text.lower().replace("_", " "))
    return {
        " ".join(words[begin:end])
        for begin in range(len(words))
        for end in range(begin + 1, min(begin + _LONGEST_NAME, len(words)) + 1)
    }


def labelled_dictionary(vocabulary: Vocabulary) -> ConceptDictionary:
    """The classes of a vocabulary that are not novel, with their definitions."""
    rows = zip(vocabulary.names, vocabulary.definitions, vocabulary.is_novel)
    found: dict[str, str] = {}
    for name, definition, novel in rows:
        if not novel:
            found.setdefault(name, definition)
    return ConceptDictionary(found)


def merged(many: Sequence[Mapping[str, str]]) -> Concepts:
    """All concepts, each once; the text is that of the first that has it."""
    found: Concepts = {}
    for concepts in many:
        for name, text in concepts.items():
            found.setdefault(name, text)
    return found

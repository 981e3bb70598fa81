"""Words of a caption that name something: what GroupViT's multi-label loss asks images for.

With spaCy they are the words tagged as nouns or verbs, as in the public code (which tags with NLTK,
by the same tags); without it the last word of each phrase between stop words.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from ovd_d2.language.noun_phrases import (
    STOP_WORDS,
    chosen_way,
    load_pipeline,
    phrases_between_stop_words,
)

logger = logging.getLogger(__name__)

# Penn Treebank's: nouns (plural proper ones are left out) and verbs of every form.
NOUN_TAGS = frozenset(["NN", "NNS", "NNP", "VB", "VBG", "VBD", "VBN", "VBP", "VBZ"])

Nouns = Callable[[str], list[str]]


def noun_finder(how: str = "auto") -> Nouns:
    """What finds the nouns of a caption: ``find(caption)`` -> words as they are written, in order;
    one that is repeated comes as often.

    Args:
        how: as for :func:`~ovd_d2.language.noun_phrases.noun_phrase_finder`.

    Raises:
        OVDError: spaCy or the pipeline is not there.
    """
    chosen = chosen_way(how)
    if chosen != how:
        by = chosen if chosen == STOP_WORDS else f"the tags of spaCy ({chosen})"
        logger.info("Nouns are found by %s.", by)
    if chosen == STOP_WORDS:
        return last_words_of_phrases
    return partial(tagged_nouns, pipeline=load_pipeline(chosen))


def tagged_nouns(caption: str, pipeline: Any) -> list[str]:
    """The words with one of ``NOUN_TAGS``.

    Args:
        caption: the text.
        pipeline: of spaCy, with a tagger.
    """
    return [word.text for word in pipeline(caption) if word.tag_ in NOUN_TAGS]


def last_words_of_phrases(caption: str) -> list[str]:
    """By :func:`~ovd_d2.language.noun_phrases.phrases_between_stop_words`; needs no library."""
    return [caption[begin:end].split()[-1] for begin, end in phrases_between_stop_words(caption)]
